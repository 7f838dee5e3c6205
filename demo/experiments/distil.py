"""``python -m demo.experiments distillation``: low rank beside whole weights, and two other families."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .record_file import add_record_options, print_committed, write_record

RECORD = Path(__file__).with_name("distil.json")


def add_distillation(commands: Any) -> None:
    """Adds the command to the parsers of ``python -m demo.experiments``."""
    from .distil_plans import EXTENTS, SUBJECTS

    command = commands.add_parser(
        "distillation", help="compare low rank with whole weights, and distil for other families; writes a record"
    )
    add_record_options(command, "distil", "distillation", "every run", EXTENTS)
    command.add_argument(
        "--only", choices=[each.key for each in SUBJECTS], help="only this model's runs, and no record"
    )
    command.set_defaults(run=run_distillation)


def run_distillation(options: argparse.Namespace) -> None:
    from .distil_table import tables

    if options.table:
        print_committed(RECORD, tables)
        return
    import torch

    from clear_core.progress import bar

    from .distil_plans import EXTENTS, SUBJECTS
    from .distil_record import make_record
    from .distil_run import Folder, run_all

    torch.set_num_threads(options.threads)
    extent = EXTENTS[options.extent]
    folder = Folder(options.out / options.extent, extent)
    wanted = [each for each in SUBJECTS if options.only in (None, each.key)]
    with bar(total=sum(len(each.radii) * len(each.methods) for each in wanted), unit="row") as rows:

        def done(name: str) -> None:
            rows.set_description(name)
            rows.update()

        run_all(folder, done, options.only)
    if options.only:
        return
    record = make_record(folder)
    write_record(options.record, record)
    print(tables(record))
