"""``python -m demo.experiments comparison``: the paper's attentions, trained alike and compared."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..record_file import add_record_options, print_committed, write_record

RECORD = Path(__file__).parents[1] / "comparison.json"


def add_comparison(commands: Any) -> None:
    """Adds the command to the parsers of ``python -m demo.experiments``."""
    command = commands.add_parser(
        "comparison", help="train the paper's attentions alike and compare them; writes a record"
    )
    add_record_options(command, "comparison", "comparison", "every run", ("full", "quick"))
    command.add_argument("--model", type=Path, help="the small FLUX's file; the committed one by default")
    command.set_defaults(run=run_comparison)


def run_comparison(options: argparse.Namespace) -> None:
    from .table import tables

    if options.table:
        print_committed(RECORD, tables)
        return
    if options.model is not None and not options.model.is_file():
        sys.exit(f"--model is {options.model}; expected a file of a tiny FLUX. Leave it out for the committed one.")
    if options.threads < 1:
        sys.exit(f"--threads is {options.threads}; expected 1 or more.")
    import torch
    from safetensors import SafetensorError

    from clear_core.progress import bar

    from ...tiny_flux.weights import load_tiny_flux
    from .plans import EXTENTS, ROWS
    from .record import make_record
    from .run import BegunError, Folder, jobs
    from .students import DivergedError

    torch.set_num_threads(options.threads)
    try:
        load_tiny_flux(options.model)
    except (SafetensorError, KeyError, RuntimeError) as error:
        sys.exit(f"{options.model} is no file of a tiny FLUX ({error}); choose one that demo.tiny_flux.train writes.")
    try:
        folder = Folder(options.out / options.extent, EXTENTS[options.extent], options.model)
        with bar(jobs(folder, ROWS), unit="run") as runs:
            for name, make in runs:
                runs.set_description(name)
                make()
    except (BegunError, DivergedError) as error:
        sys.exit(str(error))
    record = make_record(folder, ROWS)
    write_record(options.record, record)
    print(tables(record))
