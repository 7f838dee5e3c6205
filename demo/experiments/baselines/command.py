"""``python -m demo.experiments baselines``: what the attentions of the comparison cost."""

from __future__ import annotations

import argparse
from typing import Any


def add_baselines(commands: Any) -> None:
    """Adds the command to the parsers of ``python -m demo.experiments``."""
    command = commands.add_parser("baselines", help="count the paper's attentions; prints the tables of README.md")
    command.set_defaults(run=run_baselines)


def run_baselines(options: argparse.Namespace) -> None:
    from .tables import tables

    print(tables())
