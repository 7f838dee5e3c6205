"""What a CLEAR node costs beside attention itself, in a real ComfyUI on the CPU: delegating, and with windows.

    COMFYUI_PATH=ComfyUI ComfyUI/.venv/bin/python -m benchmarks.overhead --output benchmarks/records/NAME.json

with the Python that runs that ComfyUI. Three models take turns: as loaded (``stock``), with a CLEAR node that hands
every attention call back to the host (``delegating``: ``min_tokens`` above the picture's) and with windows
(``windows``). The time inside the attention kernels is taken off each call; the rest differs by our code alone. Steps
are medians; what is added is the least of all calls over stock's least, since other programs only ever add.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from .timing import write_record

# The tests know how to start a ComfyUI inside a process and how to make a small FLUX for it.
sys.path.append(str(Path(__file__).parents[1] / "tests" / "host"))

from support_comfy import boot, flux, sampling  # noqa: E402

STOCK, DELEGATING, WINDOWS = "stock", "delegating", "windows"


@dataclass(frozen=True)
class Size:
    """A model and a picture.

    Attributes:
        purpose: What it is measured for.
        width, heads, double, single: Of the model; the head size is 128.
        grid: Of the picture in tokens.
        text: Text tokens.
        radius: Of the windows.
    """

    purpose: str
    width: int
    heads: int
    double: int
    single: int
    grid: tuple[int, int]
    text: int
    radius: int

    @property
    def blocks(self) -> int:
        return self.double + self.single


# FLUX.1's blocks, each with next to nothing to compute: what is added for each of them shows. Then fewer blocks with
# more to do, where a step is long enough for a share of it to mean something.
SIZES = (Size("all blocks of FLUX.1, small", 128, 1, 19, 38, (8, 8), 16, 3),
         Size("a step that takes long", 512, 4, 2, 4, (20, 20), 64, 6))


class Stopwatch:
    """Seconds that pass inside the functions it was put around."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.clock()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += self.clock() - start
        return timed


def watch_kernels(pack: Any, clock: Callable[[], float]) -> Stopwatch:
    """Time what computes attention: the host's own function and our backends."""
    host_math = import_module("comfy.ldm.flux.math")
    wrap_attn = import_module("comfy.ldm.modules.attention").wrap_attn
    api = import_module(f"{pack.__name__}.clear_core.attention.api")
    watch = Stopwatch(clock)
    host_math.optimized_attention = wrap_attn(watch.around(host_math.optimized_attention.__wrapped__))
    api.run_backend = watch.around(api.run_backend)
    return watch


def variants(node: type, size: Size) -> dict[str, Any]:
    """The three models by name; all share one set of weights."""
    model = flux.build_flux(hidden_size=size.width, num_heads=size.heads, depth=size.double,
                            depth_single_blocks=size.single)
    return {STOCK: model,
            DELEGATING: sampling.run_node(node, model=model, radius=size.radius, min_tokens=1 << 24)[0],
            WINDOWS: sampling.run_node(node, model=model, radius=size.radius)[0]}


def time_calls(patcher: Any, size: Size, calls: int, watch: Stopwatch) -> list[tuple[float, float]]:
    """(seconds of a call of the model by a sampler, of these inside attention) of ``calls`` calls after a first one."""
    import comfy.samplers

    taken: list[tuple[float, float]] = []

    class TimedCalls(comfy.samplers.Sampler):
        def sample(self, model_wrap: Any, sigmas: Any, extra_args: dict[str, Any], callback: Any, noise: Any,
                   *_: Any, **__: Any) -> Any:
            for _ in range(calls + 1):
                before, start = watch.seconds, watch.clock()
                out = model_wrap(noise, sigmas[:1], **extra_args)
                taken.append((watch.clock() - start, watch.seconds - before))
            return out

    height, width = (2 * side for side in size.grid)
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(1, size.text, flux.TINY["context_in_dim"], generator=generator)
    pooled = torch.randn(1, flux.TINY["vec_in_dim"], generator=generator)
    x = torch.randn(1, 16, height, width, generator=generator)
    guider = comfy.samplers.CFGGuider(patcher)
    guider.inner_set_conds({"positive": sampling.conditioning(text, pooled)})
    with torch.inference_mode():
        guider.sample(x, torch.zeros_like(x), TimedCalls(), torch.tensor([0.6, 0.0]), disable_pbar=True, seed=0)
    return taken[1:]


def measure(node: type, size: Size, rounds: int, calls: int, watch: Stopwatch) -> dict[str, Any]:
    """All three at one size; a round runs each, so that a busy machine slows all alike."""
    models = variants(node, size)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for number in tqdm(range(rounds), desc=size.purpose, leave=False):
        # Whoever comes first meets the caches that the last round left.
        for name in list(models)[number % 3:] + list(models)[:number % 3]:
            taken[name] += time_calls(models[name], size, calls, watch)
    least = {name: min(step - kernel for step, kernel in own) for name, own in taken.items()}
    runs = {}
    for name, own in taken.items():
        added = least[name] - least[STOCK]
        runs[name] = {
            "step_ms": round(median(step for step, _ in own) * 1e3, 3),
            "attention_ms": round(median(kernel for _, kernel in own) * 1e3, 3),
            "added_outside_attention_ms": round(added * 1e3, 3),
            "added_per_block_us": round(added / size.blocks * 1e6, 1),
            "added_share_of_stock_step": round(added / min(step for step, _ in taken[STOCK]), 5)}
    return {"purpose": size.purpose, "width": size.width, "double_blocks": size.double, "single_blocks": size.single,
            "grid": list(size.grid), "text": size.text, "radius": size.radius, "runs": runs}


def show(result: dict[str, Any]) -> None:
    height, width = result["grid"]
    print(f"\n{result['purpose']}: {result['double_blocks']} + {result['single_blocks']} blocks of width "
          f"{result['width']}, {height} x {width} tokens")
    print(f"{'':>12} {'step':>12} {'attention':>12} {'added outside':>15} {'per block':>11} {'of a step':>10}")
    for name, run in result["runs"].items():
        print(f"{name:>12} {run['step_ms']:>9.2f} ms {run['attention_ms']:>9.2f} ms "
              f"{run['added_outside_attention_ms']:>12.3f} ms {run['added_per_block_us']:>8.1f} us "
              f"{run['added_share_of_stock_step']:>10.2%}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=3, help="of each model in a round")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--cpu-time", action="store_true", help="count this process's CPU seconds, all threads "
                        "together, in place of the clock's: for a CPU that others use at the same time")
    parser.add_argument("--output", type=Path, help="write a JSON record here")
    options = parser.parse_args()
    found = boot.find_comfyui()
    if not found:
        parser.error("there is no ComfyUI; name its folder in COMFYUI_PATH")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        base = boot.make_base(Path(folder))
        host = boot.boot(found[0], base)
        loaded = host.load_pack(boot.install_pack(base))
        if not loaded.accepted:
            raise SystemExit(f"ComfyUI did not take the pack: {loaded.logged}")
        watch = watch_kernels(loaded.module, time.process_time if options.cpu_time else time.perf_counter)
        results = []
        for size in SIZES:
            results.append(measure(host.stock("CLEARAttention"), size, options.rounds, options.calls, watch))
            show(results[-1])
    if options.output:
        shown = {name: value for name, value in vars(options).items() if name != "output"}
        write_record(options.output, torch.device("cpu"), {"comfyui": host.version, **shown}, results)


if __name__ == "__main__":
    main()
