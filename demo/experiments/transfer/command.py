"""``python -m demo.experiments transfer``: enlarged pictures, a ControlNet and strips, with windows and without."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..record_file import add_record_options, print_committed, write_record
from ..subject import add_subject, subject_of

RECORD = Path(__file__).parents[1] / "transfer.json"


def add_transfer(commands: Any) -> None:
    """Adds the command to the parsers of ``python -m demo.experiments``."""
    from .plans import EXTENTS, PARTS

    command = commands.add_parser(
        "transfer", help="enlarge, control and cut pictures with windows that were distilled for none of it"
    )
    add_record_options(command, "transfer", "transfer", "every picture made", EXTENTS)
    command.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is run (default: all)")
    add_subject(command)
    command.set_defaults(run=run_transfer)


def run_transfer(options: argparse.Namespace) -> None:
    from .table import tables

    if options.table:
        print_committed(RECORD, tables)
        return
    subject = subject_of(options)
    import torch

    from clear_core.progress import bar

    from .plans import EXTENTS
    from .record import make_record, total

    torch.set_num_threads(options.threads)
    extent, steps = EXTENTS[options.extent], 0
    with bar(total=total(extent, options.parts), unit="row") as rows:

        def on_row() -> None:
            rows.update()

        def on_step() -> None:
            nonlocal steps
            steps += 1
            rows.set_postfix_str(f"step {steps} of the ControlNets' training")

        try:
            record = make_record(options.out / options.extent, extent, subject, on_row, on_step, options.parts)
        except ValueError as error:
            raise SystemExit(str(error)) from None
    write_record(options.record, record)
    print(tables(record))
