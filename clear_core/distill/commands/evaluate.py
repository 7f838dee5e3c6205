"""``evaluate``: the distance of windows from the dense model."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from ... import ClearSpec
from ...number_checks import check_number
from .load import load_transformer, move

if TYPE_CHECKING:
    from ..samples import SampleFolder


def run_evaluate(options: argparse.Namespace) -> None:
    import torch

    from ...settings import choose_spec
    from ...weights import read_clear_file
    from ..evaluate import mean_error, velocity_errors
    from ..file_weights import load_weights
    from ..pair import Pair
    from ..samples import SampleFolder

    check_number("held_out", options.held_out, 1, whole=True)
    file = read_clear_file(options.weights) if options.weights else None
    spec: ClearSpec = choose_spec(options.radius, options.down_factor, file)
    samples = SampleFolder(options.data, first=-options.held_out)
    if file is not None:
        check_held_out(options, samples)
    pair = Pair(load_transformer(options).train(False), spec)
    if file is not None:
        load_weights(pair, file)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    move(pair.transformer, device)
    guidance = pair.teaching.scale(options.guidance)
    with torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
        errors = velocity_errors(pair, samples, guidance=guidance, device=device)
    by_level = {str(level): error for level, error in errors.items()}
    found = {"window": str(spec), "samples": len(samples), "velocity_mse": by_level, "mean": mean_error(errors)}
    print(json.dumps(found))


def check_held_out(options: argparse.Namespace, samples: SampleFolder) -> None:
    """Refuse to judge weights on samples that they may have been trained with.

    The training's folder tells it, if the weights still lie there; otherwise a line says that nobody knows.

    Raises:
        ValueError: The samples are not the training's held-out ones.
    """
    from ..config import read_training
    from ..folder_record import fingerprint_of_samples

    begun = read_training(options.weights.parent)
    if begun is None:
        print(
            f"Beside {options.weights.name} there is no record of its training: nobody knows whether it was trained "
            "with these samples.",
            file=sys.stderr,
        )
        return
    content = fingerprint_of_samples(options.data, samples.paths)["sample_content"]
    if content != begun.get("held_out_content"):
        raise ValueError(
            f"held_out is {options.held_out} of {options.data}, and these are not the {begun.get('held_out')} samples "
            f"that the training of {options.weights.name} held out; give its folder of samples and its held_out."
        )
