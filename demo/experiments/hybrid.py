"""``python -m demo.experiments hybrid``: which training-free mixture of windows and dense attention hurts least."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .record_file import add_record_options, print_committed, write_record

RECORD = Path(__file__).with_name("hybrid.json")


def add_hybrid(commands: Any) -> None:
    """Adds the command to the parsers of ``python -m demo.experiments``."""
    command = commands.add_parser("hybrid", help="compare windows without training; writes a record and a sheet")
    add_record_options(command, "hybrid", "hybrid", "every picture made")
    command.add_argument("--sheet", type=Path, default=Path("out/hybrid.jpg"))
    command.set_defaults(run=run_hybrid)


def run_hybrid(options: argparse.Namespace) -> None:
    from .hybrid_table import tables

    if options.table:
        print_committed(RECORD, tables)
        return
    from clear_core.progress import bar

    from .hybrid_plans import SETTINGS, wanted
    from .hybrid_record import make_record
    from .hybrid_run import Folder
    from .hybrid_sheet import sheet

    folder = Folder(options.out)
    for setting, plan in bar(wanted(SETTINGS), unit="row"):
        folder.latents(setting, plan)
    record = make_record(folder)
    options.sheet.parent.mkdir(parents=True, exist_ok=True)
    write_record(options.record, record)
    sheet(folder).save(options.sheet, quality=74, optimize=True)
    print(tables(record))
