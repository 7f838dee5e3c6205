"""A laboratory's record: the options of its command, the file that is written, and the tables of the committed one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

NO_RECORD = "There is no record yet; the command above makes one."

Tables = Callable[[dict[str, Any]], str]
"""A record as Markdown tables."""


def add_record_options(
    command: argparse.ArgumentParser, name: str, out: str, keeps: str, extents: Iterable[str] = ()
) -> None:
    """The options ``--out``, ``--record`` and ``--table``; with extents also ``--extent`` and ``--threads``.

    Args:
        name: Stem of the record's file.
        out: Name of the folder that is kept.
        keeps: What is kept there.
        extents: How much can be run; "full" is the default.
    """
    command.add_argument("--out", type=Path, default=Path("out", out), help=f"folder that keeps {keeps}")
    command.add_argument("--record", type=Path, default=Path("out", f"{name}.json"))
    command.add_argument("--table", action="store_true", help="only print the committed record's tables")
    if extents:
        command.add_argument(
            "--extent", choices=list(extents), default="full", help="quick: seconds, to see that it works"
        )
        command.add_argument("--threads", type=int, default=2, help="threads of the computation (default: 2)")


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a record, and its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def lines_of(record: Path, tables: Tables) -> list[str]:
    """The tables of a record, line by line; a sentence if it has not been made yet."""
    if not record.exists():
        return [NO_RECORD]
    return tables(json.loads(record.read_text(encoding="utf-8"))).split("\n")


def print_committed(record: Path, tables: Tables) -> None:
    """What ``--table`` asks for."""
    print("\n".join(lines_of(record, tables)))
