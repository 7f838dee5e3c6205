"""The tables that pages repeat, as JSON: ``dev.py sync`` writes them there, ``dev.py check`` compares."""

from __future__ import annotations

import json

from demo.experiments import distil, distil_table

from . import memory_table, model_table, training_memory
from .parallel import tables as parallel_tables


def pages() -> dict[str, dict[str, list[str]]]:
    """By page and name: the lines of a table in Markdown."""
    distilled = json.loads(distil.RECORD.read_text(encoding="utf-8"))
    return {
        "docs/memory.md": {"one call": memory_table.whole_frame_rows(), "cards": memory_table.card_rows()},
        "docs/parallel.md": parallel_tables.tables(),
        "docs/training.md": {
            "training": training_memory.rows(),
            "tiny training": training_memory.tiny_rows(),
            "distillation": distil_table.short_rows(distilled),
        },
        "demo/experiments/README.md": {"distillation": distil_table.tables(distilled).split("\n")},
        "README.md": {"models": model_table.rows()},
    }


if __name__ == "__main__":
    print(json.dumps(pages()))
