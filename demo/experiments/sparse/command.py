"""``python -m demo.experiments sparse``: which sparse attention keeps what dense attention looks at."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ..committed import lines_of
from ..subject import add_subject, subject_of

RECORD = Path(__file__).parents[1] / "sparse.json"


def add_sparse(commands: Any) -> None:
    """Adds the command to the parsers of ``python -m demo.experiments``."""
    from .plans import EXTENTS

    command = commands.add_parser(
        "sparse", help="compare windows, squares and chosen blocks at equal keys; needs comfy-kitchen; writes a record"
    )
    command.add_argument("--out", type=Path, default=Path("out/sparse"), help="folder that keeps what is measured")
    command.add_argument("--record", type=Path, default=Path("out/sparse.json"))
    command.add_argument("--extent", choices=EXTENTS, default="full", help="quick: seconds, to see that it works")
    command.add_argument("--threads", type=int, default=2, help="threads of the computation (default: 2)")
    command.add_argument("--table", action="store_true", help="only print the committed record's tables")
    add_subject(command)
    command.set_defaults(run=run_sparse)


def run_sparse(options: argparse.Namespace) -> None:
    from .table import tables

    if options.table:
        print("\n".join(lines_of(RECORD, tables)))
        return
    subject = subject_of(options)
    import torch

    from clear_core.progress import bar

    from .plans import EXTENTS
    from .run import make_record

    torch.set_num_threads(options.threads)
    extent = EXTENTS[options.extent]
    try:
        with bar(total=sum(len(size.ways(subject)) for size in extent.sizes), unit="row") as rows:
            record = make_record(options.out / options.extent, extent, subject, lambda: rows.update())
    except ValueError as error:
        raise SystemExit(str(error)) from None
    options.record.parent.mkdir(parents=True, exist_ok=True)
    options.record.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(tables(record))
