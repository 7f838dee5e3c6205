"""``python -m demo.experiments sparse``: which sparse attention keeps what dense attention looks at."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..record_file import add_record_options, print_committed, write_record
from ..subject import add_subject, subject_of

RECORD = Path(__file__).parents[1] / "sparse.json"


def add_sparse(commands: Any) -> None:
    """Adds the command to the parsers of ``python -m demo.experiments``."""
    from .plans import EXTENTS

    command = commands.add_parser(
        "sparse", help="compare windows, squares and chosen blocks at equal keys; needs comfy-kitchen; writes a record"
    )
    add_record_options(command, "sparse", "sparse", "what is measured", EXTENTS)
    add_subject(command)
    command.set_defaults(run=run_sparse)


def run_sparse(options: argparse.Namespace) -> None:
    from .table import tables

    if options.table:
        print_committed(RECORD, tables)
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
    write_record(options.record, record)
    print(tables(record))
