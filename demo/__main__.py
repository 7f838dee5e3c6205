"""``python -m demo``: prints one table and writes a picture of the window."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from clear_core import ClearSpec
from clear_core.cost import FLUX_WIDTH

NEEDS = ("diffusers", "tqdm", "Pillow")


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo; returns the exit status."""
    options = parse(arguments)
    began = time.perf_counter()
    try:
        from tqdm import tqdm

        from clear_core.draw import draw_window

        from .job import model_width, run_job, total_steps
        from .model import ABOUT, build_denoiser

        denoiser = build_denoiser()
        with tqdm(total=total_steps(), unit="step", desc="starting") as bar:
            def on_call(name: str) -> None:
                bar.set_description(name)
                bar.update()

            rows = run_job(denoiser, options.size, options.spec, on_call)
        picture = draw_window(rows[-1].layout, options.spec)
    except ImportError as error:
        print(f"python -m demo needs {', '.join(NEEDS)} ({error}): pip install {' '.join(NEEDS)}", file=sys.stderr)
        return 1
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / "window.png"
    picture.save(path)

    print()
    print(table([("pass", "tokens", "GFLOPs per layer", "s per step", "vs oracle", "vs ordinary")] + [
        (row.name, f"{row.layout.length:,}", f"{row.gflops:,.2f}", f"{row.seconds:.2f}",
         cell(row.oracle_difference), cell(row.dense_difference)) for row in rows]))
    width = model_width(denoiser)
    print(f"""
Counted:   tokens ({rows[0].layout.text} text + image), and the GFLOPs of one layer's attention at this model's width, {width};
           at FLUX.1's width, {FLUX_WIDTH}, they are {FLUX_WIDTH / width:g} times as many.
Measured:  seconds per step (whole model, this machine, one run), and the two differences:
           vs oracle    CLEAR as it ran against the plain exact backend, same input: largest difference / largest value
           vs ordinary  final latents with CLEAR and with ordinary attention: norm of the difference / norm
{ABOUT}
Picture:   {path}, the window over the grid
Time:      {time.perf_counter() - began:.0f} s in all""")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description="CLEAR attention on a small FLUX, without "
                                     "ComfyUI: ordinary attention and CLEAR side by side.")
    parser.add_argument("--radius", type=int, default=8, help="window radius in tokens of 16 px (default: 8)")
    parser.add_argument("--size", type=int, default=1536,
                        help="side in px of the high-resolution pass, a multiple of 32 (default: 1536)")
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for the picture (default: out)")
    options = parser.parse_args(arguments)
    if options.size < 32 or options.size % 32:
        parser.error(f"--size is {options.size}; expected a multiple of 32 (the base pass has half of it).")
    try:
        options.spec = ClearSpec(options.radius)
    except ValueError as error:
        parser.error(f"--{error}")
    return options


def cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def table(rows: list[tuple[str, ...]]) -> str:
    """Aligned columns under a ruled heading: words to the left, figures to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(text.ljust(width) if column == 0 else text.rjust(width)
                       for column, (text, width) in enumerate(zip(row, widths))) for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
