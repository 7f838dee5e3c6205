"""What guidance adds to a step, in a real ComfyUI on the CPU: time and memory of each method beside the step itself.

    COMFYUI_PATH=ComfyUI ComfyUI/.venv/bin/python -m benchmarks.guidance --output benchmarks/records/NAME.json

with the Python that runs that ComfyUI. The model is a FLUX of 1 + 2 blocks and a twelfth of FLUX.1's width, so its
steps are far cheaper than FLUX.1's. Guidance works on the latent alone and costs the same with either, so the shares
bound FLUX.1's from above. Every passage through a method's function is timed inside the run whose steps it is compared
with; its memory is the bytes of the tensors that are alive at once, counted in a run of its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from .in_host import LiveBytes, flux, host_with_pack, sampling
from .timing import first_line, write_record

STEPS = 4
WIDTH, HEADS, DOUBLE, SINGLE, TEXT, RADIUS = 256, 2, 1, 2, 64, 8
SIDES = (1024, 2048)
CELL = 8
"""Pixels of a latent cell."""


class Watched:
    """A post-CFG function, its seconds and the bytes that it makes."""

    def __init__(self, function: Callable[..., Any], count_bytes: bool) -> None:
        self.function = function
        self.count_bytes = count_bytes
        self.seconds: list[float] = []
        self.peak = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Watched:
        return self

    def __call__(self, args: dict[str, Any]) -> Any:
        if self.count_bytes:
            with LiveBytes() as count:
                out = self.function(args)
            self.peak = max(self.peak, count.peak)
            return out
        start = time.perf_counter()
        out = self.function(args)
        self.seconds.append(time.perf_counter() - start)
        return out


def run(host: Any, model: Any, latent: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
    """A run by the stock KSampler's function: its result, and the seconds of its model calls without guidance."""
    import comfy.sample

    generator = torch.Generator().manual_seed(0)
    config: dict[str, Any] = flux.TINY
    text = torch.randn(1, TEXT, int(config["context_in_dim"]), generator=generator)
    pooled = torch.randn(1, int(config["vec_in_dim"]), generator=generator)
    prompt = sampling.conditioning(text, pooled)
    calls: list[float] = []

    def timed(executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        out = executor(*args, **kwargs)
        calls.append(time.perf_counter() - start)
        return out

    clone = model.clone()
    clone.add_wrapper_with_key("calc_cond_batch", "benchmark", timed)
    noise = comfy.sample.prepare_noise(latent, 1)
    with torch.inference_mode():
        out = comfy.sample.sample(
            clone, noise, STEPS, 1.0, "euler", "simple", prompt, [], latent, disable_pbar=True, seed=1
        )
    return out, calls[1:]


def methods(host: Any, model: Any, small: Any, side: int) -> dict[str, Any]:
    """The guided models by name."""
    stock, cells = host.stock, side // CELL
    picture = torch.randn(1, 16, cells, cells, generator=torch.Generator().manual_seed(3))
    recorded, record = sampling.run_node(stock("CLEARGuideRecord"), model=model)
    low, _ = run(host, recorded, small)
    guide = partial(sampling.run_node, stock("CLEARGuide"), model=model, guide={"samples": picture})
    inputs = {"model": model, "record": record, "latent": {"samples": low}}
    return {
        "decay": guide(schedule="decay", level=2)[0],
        "shift": guide(schedule="shift", level=2)[0],
        "align": sampling.run_node(stock("CLEARGuideAlign"), **inputs)[0],
        "record": sampling.run_node(stock("CLEARGuideRecord"), model=model)[0],
    }


def measure(host: Any, side: int, rounds: int) -> dict[str, Any]:
    """All methods at one size; a round runs each, so that a busy machine slows all alike."""
    plain = flux.build_flux(hidden_size=WIDTH, num_heads=HEADS, depth=DOUBLE, depth_single_blocks=SINGLE)
    (model,) = sampling.run_node(host.stock("CLEARAttention"), model=plain, radius=RADIUS)
    cells = side // CELL
    empty = torch.zeros(1, 16, cells, cells)
    models = methods(host, model, torch.zeros(1, 16, cells // 2, cells // 2), side)
    steps: dict[str, list[float]] = {name: [] for name in models}
    spent: dict[str, list[float]] = {name: [] for name in models}
    peaks: dict[str, int] = {}
    for number in range(rounds + 1):
        for name, guided in models.items():
            watched = Watched(guided.model_options["sampler_post_cfg_function"][-1], count_bytes=number == 0)
            clone = guided.clone()
            clone.model_options["sampler_post_cfg_function"] = [watched]
            _, calls = run(host, clone, empty)
            if number == 0:
                peaks[name] = watched.peak
            else:
                steps[name] += calls
                spent[name] += watched.seconds[1:]
    latent = empty.nbytes
    runs = {
        name: {
            "step_ms": round(median(steps[name]) * 1e3, 2),
            "guidance_ms": round(median(spent[name]) * 1e3, 3),
            "share_of_step": round(median(spent[name]) / median(steps[name]), 5),
            "peak_latents": round(peaks[name] / latent, 2),
        }
        for name in models
    }
    return {"side": side, "latent_mib": round(latent / 2**20, 2), "steps": STEPS, "runs": runs}


def show(result: dict[str, Any]) -> None:
    """Prints the table of one result."""
    print(f"\n{result['side']} x {result['side']} px, latent of {result['latent_mib']} MiB")
    print(f"{'':>8} {'step':>12} {'guidance':>12} {'share':>8} {'memory':>14}")
    for name, run in result["runs"].items():
        print(
            f"{name:>8} {run['step_ms']:>9.1f} ms {run['guidance_ms']:>9.2f} ms {run['share_of_step']:>8.2%} "
            f"{run['peak_latents']:>6.1f} latents"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guidance", description=first_line(__doc__))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--output", type=Path, help="write a JSON record here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with host_with_pack(parser) as (host, _):
        results: list[dict[str, Any]] = []
        for side in SIDES:
            results.append(measure(host, side, options.rounds))
            show(results[-1])
    if options.output:
        settings = {name: value for name, value in vars(options).items() if name != "output"}
        model = {"width": WIDTH, "heads": HEADS, "blocks": [DOUBLE, SINGLE], "text": TEXT, "radius": RADIUS}
        write_record(options.output, torch.device("cpu"), {"comfyui": host.version, **settings, **model}, results)


if __name__ == "__main__":
    main()
