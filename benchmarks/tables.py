"""The tables that pages repeat, as JSON: ``dev.py sync`` writes them there, ``dev.py check`` compares."""

from __future__ import annotations

import json

from . import memory_table, model_table
from .parallel import tables as parallel_tables


def pages() -> dict[str, dict[str, list[str]]]:
    """By page and name: the lines of a table in Markdown."""
    return {
        "docs/memory.md": {"one call": memory_table.whole_frame_rows(), "cards": memory_table.card_rows()},
        "docs/parallel.md": parallel_tables.tables(),
        "README.md": {"models": model_table.rows()},
    }


if __name__ == "__main__":
    print(json.dumps(pages()))
