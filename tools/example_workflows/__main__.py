"""``python -m tools.example_workflows``: writes the example workflows and the blueprint."""

from __future__ import annotations

import json
from pathlib import Path

from . import blueprint
from .workflows import EXAMPLES

PROJECT = Path(__file__).parents[2]


def files() -> dict[Path, str]:
    """Text of every file, by its path."""
    graphs = [example() for example in EXAMPLES]
    texts = {PROJECT / "example_workflows" / f"{graph.name}.json": graph.saved() for graph in graphs}
    texts[PROJECT / "subgraphs" / f"{blueprint.NAME}.json"] = blueprint.saved()
    return {path: json.dumps(saved, indent=1) + "\n" for path, saved in texts.items()}


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path.relative_to(PROJECT))
