"""The tables that pages repeat, as JSON: ``dev.py sync`` writes them there, ``dev.py check`` compares."""

from __future__ import annotations

import json

from demo.experiments import distil, distil_table, locality, locality_table, quality, quality_table
from demo.experiments.comparison import command as comparison
from demo.experiments.comparison import table as comparison_table
from demo.experiments.recipe import command as recipe
from demo.experiments.recipe import table as recipe_table
from demo.experiments.record_file import lines_of
from demo.experiments.sparse import command as sparse
from demo.experiments.sparse import table as sparse_table
from demo.experiments.transfer import command as transfer
from demo.experiments.transfer import table as transfer_table

from . import format_table, memory_table, model_table, training_memory
from .parallel import tables as parallel_tables


def pages() -> dict[str, dict[str, list[str]]]:
    """By page and name: the lines of a table in Markdown."""
    distilled = json.loads(distil.RECORD.read_text(encoding="utf-8"))
    judged = json.loads(quality.RECORD.read_text(encoding="utf-8"))
    local = json.loads(locality.RECORD.read_text(encoding="utf-8"))
    return {
        "docs/memory.md": {"one call": memory_table.whole_frame_rows(), "cards": memory_table.card_rows()},
        "docs/parallel.md": parallel_tables.tables(),
        "docs/sparse.md": {"sparse attention": lines_of(sparse.RECORD, sparse_table.short_tables)},
        "docs/training.md": {
            "training": training_memory.rows(),
            "tiny training": training_memory.tiny_rows(),
            "distillation": distil_table.short_rows(distilled),
        },
        "demo/experiments/README.md": {
            "distillation": distil_table.tables(distilled).split("\n"),
            "quality": quality_table.tables(judged).split("\n"),
            "comparison": lines_of(comparison.RECORD, comparison_table.tables),
            "transfers": lines_of(transfer.RECORD, transfer_table.tables),
            "recipes": lines_of(recipe.RECORD, recipe_table.tables),
            "sparse attention": lines_of(sparse.RECORD, sparse_table.tables),
            "locality": locality_table.tables(local).split("\n"),
        },
        "docs/weights.md": {"formats": format_table.rows()},
        "README.md": {"models": model_table.rows()},
    }


if __name__ == "__main__":
    print(json.dumps(pages()))
