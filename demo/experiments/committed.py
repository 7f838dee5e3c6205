"""Tables of committed records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

NO_RECORD = "There is no record yet; the command above makes one."


def lines_of(record: Path, tables: Callable[[dict[str, Any]], str]) -> list[str]:
    """The tables of a record, line by line; a sentence if it has not been made yet."""
    if not record.exists():
        return [NO_RECORD]
    return tables(json.loads(record.read_text(encoding="utf-8"))).split("\n")
