"""``python -m demo.experiments``: windows for the tiny FLUX; guidance, hybrids, positions and distillation compared."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

from clear_core import token_grid
from clear_core.layout import TOKEN_PIXELS

from .baselines.command import add_baselines
from .distil import add_distillation
from .guidance import add_guidance
from .hybrid import add_hybrid
from .positions import add_positions

RECORD = Path(__file__).with_name("record.json")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.experiments", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(
        required=True, metavar="distil | measure | table | guidance | hybrid | positions | distillation | baselines"
    )
    distil = commands.add_parser("distil", help="train the windows' weights")
    distil.add_argument("--out", type=Path, default=Path("out/windows"), help="folder for samples, states and weights")
    distil.add_argument("--samples", type=int, default=240)
    distil.add_argument("--steps", type=int, default=60)
    distil.add_argument(
        "--rate", type=float, default=3e-4, help="learning rate; lower for wide windows (default: 3e-4)"
    )
    distil.add_argument(
        "--sides",
        type=int,
        nargs="+",
        default=[512, 512, 384],
        metavar="PX",
        help="sides of the samples, in turn (default: 512 512 384); a new folder for other ones",
    )
    distil.add_argument("--radius", type=int, nargs="*", help="only these radii")
    distil.add_argument("--down-factor", type=int, nargs="*", help="only these down factors")
    distil.set_defaults(run=run_distil)
    measure = commands.add_parser("measure", help="evaluate windows with and without their weights; writes a record")
    measure.add_argument(
        "--weights", type=Path, help="folder of clear_local_*.safetensors; the committed ones by default"
    )
    measure.add_argument("--scenes", type=int, default=16)
    measure.add_argument("--pictures", type=int, default=4)
    measure.add_argument("--record", type=Path, default=Path("out/record.json"))
    measure.set_defaults(run=run_measure)
    table = commands.add_parser("table", help="a record as a Markdown table")
    table.add_argument("--record", type=Path, default=RECORD)
    table.set_defaults(run=lambda options: print(markdown(json.loads(options.record.read_text()))))
    add_guidance(commands)
    add_hybrid(commands)
    add_positions(commands)
    add_distillation(commands)
    add_baselines(commands)
    for command in (distil, measure):
        command.add_argument("--model", type=Path, help="the tiny FLUX's file; the committed one by default")
    options = parser.parse_args(arguments)
    options.run(options)


def run_distil(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .train import distil_window, make_samples, train_config
    from .windows import SPECS

    samples = make_samples(options.out / "samples", options.samples, [(side, side) for side in options.sides])
    for spec in SPECS:
        if options.radius and spec.radius not in options.radius:
            continue
        if options.down_factor and spec.down_factor not in options.down_factor:
            continue
        with tqdm(total=options.steps, unit="step", desc=str(spec)) as bar:

            def on_step(step: int, losses: dict[str, float]) -> None:
                bar.update(step - bar.n)
                bar.set_postfix({name: f"{value:.4f}" for name, value in losses.items()})

            path = distil_window(
                train_config(spec, options.steps, rate=options.rate),
                samples,
                options.out / f"r{spec.radius}d{spec.down_factor}",
                model=options.model,
                on_step=on_step,
            )
        path.replace(options.out / path.name)


def run_measure(options: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from ..tiny_flux.weights import load_tiny_flux
    from .measure import judge, set_bench, windowed
    from .windows import SPECS, WINDOWS, window_file

    bench = set_bench(load_tiny_flux(options.model), options.scenes, options.pictures)
    rows: list[dict[str, Any]] = []
    for spec in tqdm(SPECS, unit="window"):
        for weights in (None, window_file(spec, options.weights or WINDOWS)):
            if weights is not None and not weights.exists():
                continue
            quality = judge(bench, windowed(spec, weights, options.model))
            rows.append(
                {
                    "radius": spec.radius,
                    "down_factor": spec.down_factor,
                    "distilled": weights is not None,
                    "velocity_mse": {str(k): v for k, v in quality.velocity_mse.items()},
                    "mean_mse": quality.mean_mse,
                    "psnr": quality.psnr,
                    "ssim": quality.ssim,
                    "layout": quality.layout,
                }
            )
    options.record.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "grid": list(token_grid(*bench.size, TOKEN_PIXELS)),
        "scenes": options.scenes,
        "pictures": options.pictures,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "rows": rows,
    }
    options.record.write_text(json.dumps(record, indent=1) + "\n")
    print(markdown(record))


def markdown(record: dict[str, Any]) -> str:
    """The table of README.md."""
    levels = list(record["rows"][0]["velocity_mse"])
    head = [
        "window",
        "weights",
        *(f"\N{GREEK SMALL LETTER SIGMA} {level}" for level in levels),
        "mean",
        "PSNR dB",
        "SSIM",
        "layout",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * 2 + " ---: |" * (len(head) - 2)]
    for row in record["rows"]:
        window = f"radius {row['radius']}" + (f", pooled {row['down_factor']}" if row["down_factor"] > 1 else "")
        cells = [
            window,
            "distilled" if row["distilled"] else "as they are",
            *(f"{1000 * row['velocity_mse'][level]:.2f}" for level in levels),
            f"{1000 * row['mean_mse']:.2f}",
            *(
                "" if row[name] is None else f"{row[name]:.{digits}f}"
                for name, digits in (("psnr", 1), ("ssim", 3), ("layout", 4))
            ),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
