"""``python -m demo``: one contact sheet, one table, and a picture of the window."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path

from clear_core import ClearSpec
from clear_core.cost import FLUX_WIDTH

from .tiny_flux.model import CONFIG

NOT_USED = ("torchao", "bitsandbytes", "diffusers.quantizers", "torch.utils._pytree")
"""Loggers of libraries that diffusers looks at where they are installed, and that tell what they lack on a CPU."""

NEEDS = ("diffusers", "numpy", "tqdm", "Pillow")
WIDTH = CONFIG["num_attention_heads"] * CONFIG["attention_head_dim"]


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo; returns the exit status."""
    options = parse(arguments)
    for name in NOT_USED:
        logging.getLogger(name).setLevel(logging.ERROR)
    began = time.perf_counter()
    try:
        from clear_core.inspection.window_figure import draw_window
        from clear_core.progress import bar

        from .job import run_job, total_calls
        from .model import ABOUT, CAPTION
        from .sheet import contact_sheet

        caption = options.caption or CAPTION
        with bar(total=total_calls(), unit="step", desc="starting") as steps:

            def on_call(name: str) -> None:
                steps.set_description(name)
                steps.update()

            rows = run_job(caption, options.size, options.spec, on_call)
        pictures = {"sheet.png": contact_sheet(rows, caption), "window.png": draw_window(rows[-1].layout, options.spec)}
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    except ImportError as error:
        print(f"python -m demo needs {', '.join(NEEDS)} ({error}): pip install {' '.join(NEEDS)}", file=sys.stderr)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        picture.save(options.output / name)

    print()
    print(
        table(
            [("pass", "tokens", "GFLOPs per layer", "s per step", "vs oracle", "PSNR dB")]
            + [
                (
                    row.name,
                    f"{row.layout.length:,}",
                    f"{row.gflops:,.2f}",
                    f"{row.seconds:.2f}",
                    cell(row.oracle_difference, ".1e"),
                    cell(row.psnr, ".1f"),
                )
                for row in rows
            ]
        )
    )
    print(f"""
Counted:   tokens ({rows[0].layout.text} text + image), and the GFLOPs of one layer's attention at this model's width,
           {WIDTH}; at FLUX.1's width, {FLUX_WIDTH}, they are {FLUX_WIDTH / WIDTH:g} times as many.
Measured:  seconds per step (whole model, this machine, one run), and the two differences:
           vs oracle  CLEAR as it ran compared with the dense oracle, same input: largest difference / largest value
           PSNR       of the picture compared with that of dense attention
{ABOUT}
Pictures:  {options.output / "sheet.png"} (for the eye), {options.output / "window.png"} (the window over the grid)
Time:      {time.perf_counter() - began:.0f} s in all""")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="CLEAR attention on the tiny FLUX, without "
        "ComfyUI: dense attention, windows, and distilled windows side by side.",
    )
    parser.add_argument(
        "--caption",
        default="",
        help='what to show: things ("a big red striped ball left"), then the '
        'land and the time ("sea dusk"), then the sky ("sun right"), with commas between',
    )
    parser.add_argument("--radius", type=int, default=8, help="window radius in tokens of 16 px (default: 8)")
    parser.add_argument(
        "--size",
        type=int,
        default=256,
        help="side in px of the base picture, a multiple of 16; redrawn at 2 and 4 times (default: 256)",
    )
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for the pictures (default: out)")
    options = parser.parse_args(arguments)
    if options.size < 16 or options.size % 16:
        parser.error(f"--size is {options.size}; expected a multiple of 16.")
    try:
        options.spec = ClearSpec(options.radius)
    except ValueError as error:
        parser.error(f"--{error}")
    return options


def cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def table(rows: list[tuple[str, ...]]) -> str:
    """Aligned columns under a ruled heading: text to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
