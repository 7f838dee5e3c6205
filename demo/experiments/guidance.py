"""``python -m demo.experiments guidance``: makes and judges the laboratory's pictures, writes a record and a sheet."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .record_file import add_record_options, print_committed, write_record

RECORD = Path(__file__).with_name("guidance.json")


def add_guidance(commands: Any) -> None:
    """Adds the command to the parsers of ``python -m demo.experiments``."""
    command = commands.add_parser("guidance", help="compare ways to a large picture; writes a record and a sheet")
    command.add_argument("--scenes", type=int, default=4)
    command.add_argument("--few", type=int, default=2, help="of these, the scenes with every attention and size")
    add_record_options(command, "guidance", "guidance", "every picture made")
    command.add_argument("--sheet", type=Path, default=Path("out/guidance.jpg"))
    command.set_defaults(run=run_guidance)


def run_guidance(options: argparse.Namespace) -> None:
    from .guidance_table import tables

    if options.table:
        print_committed(RECORD, tables)
        return
    from clear_core.progress import bar

    from .guidance_record import make_record
    from .guidance_run import Folder, wanted
    from .guidance_sheet import sheet

    folder = Folder(options.out)
    for index, scene, attention, method, side in bar([*wanted(options.scenes, options.few)], unit="picture"):
        folder.large(index, scene, attention, method, side)
    record = make_record(folder, options.scenes, options.few)
    write_record(options.record, record)
    options.sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet(folder, options.scenes, options.few).save(options.sheet, quality=74, optimize=True)
    print(tables(record))
