"""``python -m demo.experiments distil | measure | table``: the committed windows, made and judged."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .record_file import print_committed, write_record
from .subject import add_subject, subject_of

RECORD = Path(__file__).with_name("record.json")

SIDES = (512, 1024)
"""Sides in px at which windows are judged: twice and four times the base picture's."""


def add_quality(commands: Any) -> None:
    """Adds the commands to the parsers of ``python -m demo.experiments``."""
    distil = commands.add_parser("distil", help="train the windows' weights")
    distil.add_argument("--out", type=Path, default=Path("out/windows"), help="folder for samples, states and weights")
    distil.add_argument("--samples", type=int, default=240)
    distil.add_argument("--steps", type=int, help="for every window; its own number by default")
    distil.add_argument("--rate", type=float, help="learning rate; each window's own by default")
    distil.add_argument(
        "--sides", type=int, nargs="+", metavar="PX", help="of the samples; each window's own by default"
    )
    distil.add_argument("--radius", type=int, nargs="*", help="only these radii")
    distil.add_argument("--down-factor", type=int, nargs="*", help="only these down factors")
    distil.add_argument("--threads", type=int, default=2, help="threads of the computation (default: 2)")
    distil.set_defaults(run=run_distil)
    measure = commands.add_parser("measure", help="evaluate windows with and without their weights; writes a record")
    measure.add_argument("--sides", type=int, nargs="+", default=list(SIDES), metavar="PX")
    measure.add_argument("--scenes", type=int, default=16)
    measure.add_argument("--pictures", type=int, default=4)
    measure.add_argument("--record", type=Path, default=Path("out/record.json"))
    measure.add_argument("--threads", type=int, default=2, help="threads of the computation (default: 2)")
    measure.set_defaults(run=run_measure)
    table = commands.add_parser("table", help="a record of measure as Markdown tables")
    table.add_argument("--record", type=Path, default=RECORD)
    table.set_defaults(run=run_table)
    add_subject(measure)
    distil.add_argument("--model", type=Path, help="the tiny FLUX's file; the committed one by default")


def run_distil(options: argparse.Namespace) -> None:
    import torch

    from clear_core.progress import bar, losses_told

    from .train import distil_window, make_samples, train_config
    from .windows import SPECS, recipe_of

    torch.set_num_threads(options.threads)
    for spec in SPECS:
        if options.radius and spec.radius not in options.radius:
            continue
        if options.down_factor and spec.down_factor not in options.down_factor:
            continue
        recipe = recipe_of(spec)
        steps, rate, sides = options.steps or recipe.steps, options.rate or recipe.rate, options.sides or recipe.sides
        folder = options.out / "samples" / " ".join(map(str, sides))
        samples = make_samples(folder, options.samples, [(side, side) for side in sides])
        with bar(total=steps, unit="step", desc=str(spec)) as done:

            def on_step(step: int, losses: dict[str, float]) -> None:
                done.update(step - done.n)
                done.set_postfix_str(losses_told(losses))

            path = distil_window(
                train_config(spec, steps, rate=rate),
                samples,
                options.out / f"r{spec.radius}d{spec.down_factor}",
                model=options.model,
                on_step=on_step,
            )
        path.replace(options.out / path.name)


def run_measure(options: argparse.Namespace) -> None:
    subject = subject_of(options)
    if options.pictures > options.scenes:
        raise SystemExit(f"--pictures is {options.pictures}; expected at most the {options.scenes} of --scenes.")
    for side in options.sides:
        if side < 16 or side % 16:
            raise SystemExit(f"--sides has {side}; expected multiples of 16 px.")
    import torch

    from clear_core.progress import bar

    from .quality_record import judged, make_record
    from .quality_table import tables
    from .windows import SPECS

    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    with bar(total=2 * len(SPECS) * len(options.sides), unit="window") as done:
        for side in options.sides:
            for row in judged(side, options.scenes, options.pictures, subject):
                rows.append(row)
                done.update()
    record = make_record(rows, options.scenes, options.pictures, subject)
    write_record(options.record, record)
    print(tables(record))


def run_table(options: argparse.Namespace) -> None:
    from .quality_table import tables

    print_committed(options.record, tables)
