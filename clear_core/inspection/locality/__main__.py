"""``python -m clear_core.inspection.locality``: where a diffusers model looks, and which blocks should stay dense."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...distill.__main__ import DTYPES
from .settings import LEVELS, PARTS, LocalitySettings

if TYPE_CHECKING:
    from ...distill.samples import Batch, SampleFolder
    from ...spec import ClearSpec
    from .summary import Record

RECORD, PAGE, KEPT = "locality.json", "locality.html", "parts"


def main(arguments: list[str] | None = None) -> int:
    """Measures, and writes record and page; returns the exit status."""
    options = parse(arguments)
    try:
        run(options)
    except torch.OutOfMemoryError:
        print(
            "The GPU's memory is too small for the whole model and its call for one picture; give --cpu, or take "
            "samples of smaller pictures.",
            file=sys.stderr,
        )
        return 1
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"{type(error).__name__}: {error}" if isinstance(error, OSError) else error, file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m clear_core.inspection.locality",
        description="Measures how local a model's attention is: the mass near a query (mass), how much near "
        "and far positions matter (distances), and the cost of windows block by block (windows). Proposes the "
        "blocks that should stay dense in a training-free hybrid. Needs diffusers; FLUX.1, Chroma, FLUX.2, "
        "Qwen-Image and SD3.5.",
    )
    parser.add_argument("--model", required=True, help="folder, file or Hub name of a diffusers model")
    parser.add_argument("--download", action="store_true", help="download the model if it is not here yet")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of the weights, and of autocast")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of samples, from `python -m clear_core.distill images`"
    )
    parser.add_argument("--samples", type=int, default=2, help="the first so many (default: 2), all of one size")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for record and page; resumes after a stop (parts, dense-blocks and share may change)",
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="what is measured (default: all); calls of the model for one sample at one noise level: mass one, windows "
        "one for each block, distances two for each limit, and for windows or distances two more, for the proposal "
        "three; distances with scores of all N^2 pairs of image tokens in float32, "
        "O(N^2 * D) in each block without a fused kernel: leave it out for large models without a card",
    )
    parser.add_argument("--radius", type=int, default=0, help="of the windows (default: as CLEAR Attention)")
    parser.add_argument(
        "--down-factor", type=int, default=0, help="side of the overview's cells (default: 4; 1: windows alone)"
    )
    parser.add_argument("--levels", type=float, nargs="+", default=list(LEVELS), help="noise levels, up to 1")
    parser.add_argument("--radii", type=int, nargs="+", default=[], help="circles of the mass (default: 4 8 16 ...)")
    parser.add_argument("--limits", type=int, nargs="+", default=[], help="clipped distances (default: 1 2 4 ...)")
    parser.add_argument("--queries", type=int, default=1024, help="queries of the mass; 0: all (default: 1024)")
    parser.add_argument("--query", type=int, nargs=2, metavar=("ROW", "COLUMN"), help="of the maps (default: middle)")
    number = parser.add_mutually_exclusive_group()
    number.add_argument("--dense-blocks", type=int, help="number of blocks to propose (default: one of eight)")
    number.add_argument("--share", type=float, help="share of the windows' error that they should hold, 0 to 1")
    parser.add_argument("--guidance", type=float, help="of the model's own input (default: the family's usual scale)")
    parser.add_argument("--seed", type=int, default=0, help="of noise and of the sample of queries")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    from ...distill.commands.load import load_transformer, move, transformer_builder
    from ...distill.families import teaching_of
    from ...distill.samples import SampleFolder
    from ...number_checks import check_number
    from ...progress import bar
    from .kept import make_folder
    from .measure import Subject
    from .page import html_page
    from .run import Run
    from .summary import proposal_sentence

    check_number("samples", options.samples, 1, whole=True)
    samples = SampleFolder(options.data, end=options.samples)
    if len(samples) < options.samples:
        print(f"{options.data} holds {len(samples)} of the {options.samples} samples; these are measured.")
    make_folder(options.out / KEPT)
    # The model without weights: what does not fit is refused before they are read.
    build, family = transformer_builder(options)
    with torch.device("meta"):
        skeleton = build()
    teaching = teaching_of(skeleton)
    samples.check_fits(teaching.needs(skeleton.config, 1.0), teaching.even)
    height, width = samples.load([0])[0]["latents"].shape[-2:]
    settings = settings_of(options, (height // family.token_cells, width // family.token_cells))
    device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
    subject = Subject(skeleton, pictures_of(samples, settings.seed, device), settings, getattr(torch, options.dtype))
    if not options.download:  # A model that is not here yet has no content to compare the folder by.
        Run(subject, options.out / KEPT, about(options, samples, device))
    subject.transformer = load_transformer(options).train(False)
    move(subject.transformer, device)
    with bar(unit="call") as calls:
        measured = Run(subject, options.out / KEPT, about(options, samples, device), calls.update)
        calls.reset(measured.total)
        record = measured.record()
    (options.out / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (options.out / PAGE).write_text(html_page(record, measured.maps), encoding="utf-8")
    print(f"{options.out / PAGE}: {proposal_sentence(record) if 'proposal' in record else 'done'}")


def settings_of(options: argparse.Namespace, grid: tuple[int, int]) -> LocalitySettings:
    """The settings that the arguments come to, for pictures of (h, w) tokens.

    Raises:
        ValueError: A value is out of range.
    """
    return LocalitySettings(
        spec=windows_of(options.radius, options.down_factor, grid),
        parts=tuple(part for part in PARTS if part in options.parts),
        levels=tuple(options.levels),
        radii=tuple(options.radii),
        limits=tuple(options.limits),
        queries=options.queries,
        query=None if options.query is None else tuple(options.query),
        count=options.dense_blocks,
        share=options.share,
        guidance=options.guidance,
        seed=options.seed,
    )


def windows_of(radius: int, down_factor: int, grid: tuple[int, int]) -> ClearSpec:
    """The windows that CLEAR Attention would make of its widgets without distilled weights."""
    from ...settings import ClearSettings

    return ClearSettings.of_widgets(radius, down_factor, None).spec_on(grid)


def pictures_of(samples: SampleFolder, seed: int, device: torch.device) -> list[Batch]:
    """The samples, one in a batch, each with noise of its own."""
    return [samples.batch([index], [index], seed, 0).to(device) for index in range(len(samples))]


def about(options: argparse.Namespace, samples: SampleFolder, device: torch.device) -> Record:
    """What the record says of model, samples and machine. It names no folder."""
    import diffusers

    from ...distill.model_content import content_of

    found: dict[str, Any] = {
        "model": Path(options.model).name,
        "model_content": content_of(options.model),
        "dtype": options.dtype,
        **samples.fingerprint(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
    }
    return found


if __name__ == "__main__":
    sys.exit(main())
