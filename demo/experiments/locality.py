"""``python -m demo.experiments locality``: where the tiny FLUX looks, at three sizes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .record_file import add_record_options, print_committed, write_record

RECORD = Path(__file__).with_name("locality.json")
PICTURE_SIDE = 512
"""Side in px whose figures are the picture: the size that the tiny FLUX draws best."""


def add_locality(commands: Any) -> None:
    """Adds the command to the parsers of ``python -m demo.experiments``."""
    command = commands.add_parser(
        "locality", help="attention mass, clipped distances and the cost of windows by block; writes a record"
    )
    command.add_argument("--model", type=Path, help="the tiny FLUX's file; the committed one by default")
    add_record_options(command, "locality", "locality", "what is measured")
    command.add_argument("--picture", type=Path, default=Path("out/locality.png"))
    command.add_argument("--sides", type=int, nargs="+", help="sides in px, multiples of 128 (default: 256 512 1024)")
    command.set_defaults(run=run_locality)


def run_locality(options: argparse.Namespace) -> None:
    from .locality_table import tables

    if options.table:
        print_committed(RECORD, tables)
        return
    from clear_core.inspection.locality.page import draw_sheet, html_page
    from clear_core.progress import bar

    from .locality_run import EXTENTS, check_side, laboratory_record, measure_side

    sides = options.sides or list(EXTENTS)
    for side in sides:
        check_side(side)
    found: list[tuple[dict[str, Any], Any]] = []
    for side in sides:
        with bar(unit="call", desc=f"{side} px") as calls:
            found.append(measure_side(side, options.model, options.out, calls))
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    for side, (record, maps) in zip(sides, found, strict=True):
        (options.out / f"{side}.html").write_text(html_page(record, maps), encoding="utf-8")
    shown = sides.index(PICTURE_SIDE) if PICTURE_SIDE in sides else 0
    # Few colors: the figures have no more, and the picture becomes small.
    draw_sheet(*found[shown]).quantize(96).save(options.picture, optimize=True)
    record = laboratory_record([each for each, _ in found])
    write_record(options.record, record)
    print(tables(record))
