"""``python -m demo.experiments``: windows for the tiny FLUX made and judged, and everything that is compared on it."""

from __future__ import annotations

import argparse

from .baselines.command import add_baselines
from .comparison.command import add_comparison
from .distil import add_distillation
from .guidance import add_guidance
from .hybrid import add_hybrid
from .locality import add_locality
from .positions import add_positions
from .quality import add_quality
from .recipe.command import add_recipe
from .sparse.command import add_sparse
from .transfer.command import add_transfer


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.experiments", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    add_quality(commands)
    add_guidance(commands)
    add_hybrid(commands)
    add_locality(commands)
    add_positions(commands)
    add_distillation(commands)
    add_recipe(commands)
    add_transfer(commands)
    add_sparse(commands)
    add_baselines(commands)
    add_comparison(commands)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
