"""``python -m demo.experiments recipe``: rotary base, proportional scale and colour fix at a large size."""

from __future__ import annotations

import argparse
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..record_file import add_record_options, print_committed, write_record
from ..subject import add_subject, subject_of

RECORD = Path(__file__).parents[1] / "recipe.json"


def add_recipe(commands: Any) -> None:
    """Adds the command to the parsers of ``python -m demo.experiments``."""
    from .plans import EXTENTS

    command = commands.add_parser(
        "recipe", help="compare rotary bases, proportional scale and colour fix; writes a record and a sheet"
    )
    add_record_options(command, "recipe", "recipe", "every picture made", EXTENTS)
    command.add_argument("--sheet", type=Path, default=Path("out/recipe.jpg"))
    add_subject(command)
    command.set_defaults(run=run_recipe)


def run_recipe(options: argparse.Namespace) -> None:
    from .table import tables

    if options.table:
        print_committed(RECORD, tables)
        return
    subject = subject_of(options)
    import torch

    from clear_core.progress import bar

    from ..kept import begin
    from .plans import EXTENTS
    from .run import rows
    from .sheet import sheet

    torch.set_num_threads(options.threads)
    extent, folder = EXTENTS[options.extent], options.out / options.extent
    identity = asdict(extent) | subject.identity
    try:
        begin(folder, identity)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    total = sum((2 if strength < 1 else 1) * len(extent.recipes) for strength in extent.strengths)
    record = {
        "model": identity["model"],
        "torch": torch.__version__,
        "machine": platform.machine(),
        "side": extent.side,
        "start": extent.start,
        "scenes": extent.scenes,
        "steps": extent.steps,
        "window": str(extent.spec),
        "rows": list(bar(rows(folder, extent, subject), total=total, unit="row")),
    }
    options.sheet.parent.mkdir(parents=True, exist_ok=True)
    write_record(options.record, record)
    sheet(folder, extent, subject).save(options.sheet, quality=74, optimize=True)
    print(tables(record))
