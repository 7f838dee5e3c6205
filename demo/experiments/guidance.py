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
    command.add_argument("--above", type=int, default=2, help="of these, the scenes also made at 2048 px (default: 2)")
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
    from tqdm import tqdm

    from .guidance_record import make_record
    from .guidance_run import Folder, make_all, pictures
    from .guidance_sheet import sheet

    folder = Folder(options.out)
    total = pictures(options.scenes, options.above)
    for _ in tqdm(make_all(folder, options.scenes, options.above), total=total, unit="picture"):
        pass
    record = make_record(folder, options.scenes, options.above)
    options.record.parent.mkdir(parents=True, exist_ok=True)
    options.record.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    options.sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet(folder, options.scenes, options.above).save(options.sheet, quality=82)
    print(tables(record))
