"""``python -m demo.experiments guidance``: makes and judges the laboratory's pictures, writes a record and a sheet."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("guidance.json")


def add_guidance(commands: Any) -> None:
    """Adds the command to the parsers of ``python -m demo.experiments``."""
    command = commands.add_parser("guidance", help="compare ways to a large picture; writes a record and a sheet")
    command.add_argument("--scenes", type=int, default=4)
    command.add_argument("--few", type=int, default=2, help="of these, the scenes with every attention and size")
    command.add_argument("--out", type=Path, default=Path("out/guidance"), help="folder that keeps every picture made")
    command.add_argument("--record", type=Path, default=Path("out/guidance.json"))
    command.add_argument("--sheet", type=Path, default=Path("out/guidance.jpg"))
    command.add_argument("--table", action="store_true", help="only print the committed record's tables")
    command.set_defaults(run=run_guidance)


def run_guidance(options: argparse.Namespace) -> None:
    from .guidance_table import tables

    if options.table:
        print(tables(json.loads(RECORD.read_text())))
        return
    from clear_core.progress import bar

    from .guidance_record import make_record
    from .guidance_run import Folder, wanted
    from .guidance_sheet import sheet

    folder = Folder(options.out)
    for index, scene, attention, method, side in bar([*wanted(options.scenes, options.few)], unit="picture"):
        folder.large(index, scene, attention, method, side)
    record = make_record(folder, options.scenes, options.few)
    options.record.parent.mkdir(parents=True, exist_ok=True)
    options.record.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    options.sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet(folder, options.scenes, options.few).save(options.sheet, quality=74, optimize=True)
    print(tables(record))
