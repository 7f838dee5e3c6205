"""``evaluate``: the distance of windows from the dense model."""

from __future__ import annotations

import argparse
import json

from ... import ClearSpec
from ...number_checks import check_number
from .load import load_teacher, move


def run_evaluate(options: argparse.Namespace) -> None:
    import torch

    from ...settings import choose_spec
    from ...weights import read_clear_file
    from ..evaluate import mean_error, velocity_errors
    from ..samples import SampleFolder
    from ..student import load_weights, make_student

    check_number("held_out", options.held_out, 1, whole=True)
    file = read_clear_file(options.weights) if options.weights else None
    spec: ClearSpec = choose_spec(options.radius, options.down_factor, file)
    teacher = load_teacher(options).eval()
    student = make_student(teacher, spec).eval()
    if file is not None:
        load_weights(student, options.weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    move(teacher, device)
    move(student, device)
    guidance = options.guidance if teacher.config["guidance_embeds"] else None
    with torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
        errors = velocity_errors(
            student, teacher, SampleFolder(options.data, first=-options.held_out), guidance=guidance, device=device
        )
    print(
        json.dumps(
            {"window": str(spec), "velocity_mse": {str(k): v for k, v in errors.items()}, "mean": mean_error(errors)}
        )
    )
