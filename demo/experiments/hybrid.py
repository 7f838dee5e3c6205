"""``python -m demo.experiments hybrid``: which training-free mixture of windows and dense attention hurts least."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("hybrid.json")


def add_hybrid(commands: Any) -> None:
    """Adds the command to the parsers of ``python -m demo.experiments``."""
    command = commands.add_parser("hybrid", help="compare windows without training; writes a record and a sheet")
    command.add_argument("--out", type=Path, default=Path("out/hybrid"), help="folder that keeps every picture made")
    command.add_argument("--record", type=Path, default=Path("out/hybrid.json"))
    command.add_argument("--sheet", type=Path, default=Path("out/hybrid.jpg"))
    command.add_argument("--table", action="store_true", help="only print the committed record's tables")
    command.set_defaults(run=run_hybrid)


def run_hybrid(options: argparse.Namespace) -> None:
    from .hybrid_table import tables

    if options.table:
        print(tables(json.loads(RECORD.read_text())))
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
    for path in (options.record, options.sheet):
        path.parent.mkdir(parents=True, exist_ok=True)
    options.record.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sheet(folder).save(options.sheet, quality=74, optimize=True)
    print(tables(record))
