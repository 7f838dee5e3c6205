"""``python -m demo.experiments positions``: which positions a model with a table has past the table's end."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .record_file import add_record_options, print_committed, write_record

RECORD = Path(__file__).with_name("positions.json")


def add_positions(commands: Any) -> None:
    """Adds the command to the parsers of ``python -m demo.experiments``."""
    command = commands.add_parser(
        "positions", help="compare positions past the tiny SD3's table; writes a record and a sheet"
    )
    add_record_options(command, "positions", "positions", "every picture made")
    command.add_argument("--sheet", type=Path, default=Path("out/positions.jpg"))
    command.add_argument("--model", type=Path, help="the tiny SD3's file; the committed one by default")
    command.add_argument("--before", type=Path, help="training state from before the last stage; its flows, too")
    command.set_defaults(run=run_positions)


def run_positions(options: argparse.Namespace) -> None:
    from .positions_table import tables

    if options.table:
        print_committed(RECORD, tables)
        return
    from clear_core.progress import bar

    from ..tiny_sd3.weights import load_tiny_sd3
    from .positions_methods import wanted
    from .positions_record import make_record
    from .positions_run import Folder
    from .positions_sheet import sheet

    folder = Folder(options.out, load_tiny_sd3(options.model))
    for setting, method in bar(wanted(), unit="row"):
        folder.latents(setting, method)
    record = make_record(folder, Folder(options.out, load_tiny_sd3(options.before)) if options.before else None)
    options.sheet.parent.mkdir(parents=True, exist_ok=True)
    write_record(options.record, record)
    sheet(folder).save(options.sheet, quality=60, optimize=True)
    print(tables(record))
