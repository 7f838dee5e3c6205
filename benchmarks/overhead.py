"""Overhead of a CLEAR node besides attention itself, in a real ComfyUI on the CPU: delegating, and with windows.

    COMFYUI_PATH=ComfyUI ComfyUI/.venv/bin/python -m benchmarks.overhead --output benchmarks/records/NAME.json

with the Python that runs that ComfyUI. Three models take turns: as loaded (``stock``), with a CLEAR node that hands
every attention call back to the host (``delegating``: ``min_tokens`` above the picture's) and with windows
(``windows``). Every passage through our own code is timed: the node's wrappers around the model's call without that
call, the attention override without the attention. The overhead is the median passage times the passages of a step,
which other programs on the machine hardly affect. Steps are in CPU seconds of this process for the same reason.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import torch

from clear_core.progress import bar

from .in_host import flux, host_with_pack, sampling
from .timing import first_line, write_record

STOCK, DELEGATING, WINDOWS = "stock", "delegating", "windows"


@dataclass(frozen=True)
class Size:
    """A model and an image.

    Attributes:
        purpose: Purpose of the measurement.
        width, heads, double, single: Size of the model; the head size is 128.
        grid: (h, w) of the image in tokens.
        text: Text tokens.
        radius: Radius of the windows.
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


# All blocks of FLUX.1 with little computation, to show the overhead per block. Then fewer, larger blocks, so that a
# step is long enough for a meaningful share.
SIZES = (
    Size("all blocks of FLUX.1, small", 128, 1, 19, 38, (8, 8), 16, 3),
    Size("a step that takes long", 512, 4, 2, 4, (20, 20), 64, 6),
)


class OwnTime:
    """Seconds of every passage through our functions, without host functions and kernels that they call."""

    def __init__(self) -> None:
        self.passages: dict[str, list[float]] = {}
        self.kernels = 0.0

    def kernel(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, which computes attention."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.kernels += time.perf_counter() - start

        return timed

    def ours(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A method of ours, which may call kernels."""
        passages = self.passages.setdefault(function.__qualname__, [])

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start, kernels = time.perf_counter(), self.kernels
            try:
                return function(*args, **kwargs)
            finally:
                passages.append(time.perf_counter() - start - (self.kernels - kernels))

        return timed

    def wrapper(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A method of ours that wraps the model's call; its first argument makes the call."""
        passages = self.passages.setdefault(function.__qualname__, [])

        @wraps(function)
        def timed(it: Any, executor: Any, *args: Any, **kwargs: Any) -> Any:
            inner = TimedExecutor(executor)
            start = time.perf_counter()
            try:
                return function(it, inner, *args, **kwargs)
            finally:
                passages.append(time.perf_counter() - start - inner.seconds)

        return timed

    def watch(self, pack: Any) -> None:
        """Wraps the host's attention, our backends and everything that a node adds to a model's call."""
        host_math: Any = import_module("comfy.ldm.flux.math")
        wrap_attn = import_module("comfy.ldm.modules.attention").wrap_attn
        host_math.optimized_attention = wrap_attn(self.kernel(host_math.optimized_attention.__wrapped__))
        api: Any = import_module(f"{pack.__name__}.clear_core.attention.api")
        api.run_backend = self.kernel(api.run_backend)
        host_layers: Any = import_module("comfy.ldm.flux.layers")
        host_layers.EmbedND.forward = self.kernel(host_layers.EmbedND.forward)
        patch, window, memory, embedder, throughput = (
            import_module(f"{pack.__name__}.nodes.host.model.{name}")
            for name in ("window_patch", "attention_override", "memory", "rope_embedder", "throughput")
        )
        patch.WindowPatch.__call__ = self.wrapper(patch.WindowPatch.__call__)
        memory.MemoryPatch.apply_model = self.wrapper(memory.MemoryPatch.apply_model)
        embedder.PositionsPatch.__call__ = self.wrapper(embedder.PositionsPatch.__call__)
        throughput.StopWatch.call = self.wrapper(throughput.StopWatch.call)
        embedder.PositionEmbedder.forward = self.ours(embedder.PositionEmbedder.forward)
        window.WindowCall.attend = self.ours(window.WindowCall.attend)
        window.WindowCall.observe_input = self.ours(window.WindowCall.observe_input)


class TimedExecutor:
    """The host's chain of wrappers, with the seconds it takes."""

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.class_obj = executor.class_obj
        self.seconds = 0.0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return self.executor(*args, **kwargs)
        finally:
            self.seconds += time.perf_counter() - start


def variants(node: type, size: Size) -> dict[str, Any]:
    """The three models by name; all share one set of weights."""
    model = flux.build_flux(
        hidden_size=size.width, num_heads=size.heads, depth=size.double, depth_single_blocks=size.single
    )
    return {
        STOCK: model,
        DELEGATING: sampling.run_node(node, model=model, radius=size.radius, min_tokens=1 << 24)[0],
        WINDOWS: sampling.run_node(node, model=model, radius=size.radius)[0],
    }


def time_calls(patcher: Any, size: Size, calls: int, watch: OwnTime) -> tuple[list[float], dict[str, list[float]]]:
    """CPU seconds of ``calls`` calls of the model by a sampler after a first one, and of passages through our code."""
    import comfy.samplers

    taken: list[float] = []

    class TimedCalls(comfy.samplers.Sampler):
        def sample(
            self,
            model_wrap: Any,
            sigmas: Any,
            extra_args: dict[str, Any],
            callback: Any,
            noise: Any,
            *rest: Any,
            **options: Any,
        ) -> Any:
            out = model_wrap(noise, sigmas[:1], **extra_args)
            for passages in watch.passages.values():
                passages.clear()
            for _ in range(calls):
                start = time.process_time()
                out = model_wrap(noise, sigmas[:1], **extra_args)
                taken.append(time.process_time() - start)
            return out

    height, width = (2 * side for side in size.grid)
    generator = torch.Generator().manual_seed(0)
    config: dict[str, Any] = flux.TINY
    text = torch.randn(1, size.text, int(config["context_in_dim"]), generator=generator)
    pooled = torch.randn(1, int(config["vec_in_dim"]), generator=generator)
    x = torch.randn(1, 16, height, width, generator=generator)
    guider = comfy.samplers.CFGGuider(patcher)
    guider.inner_set_conds({"positive": sampling.conditioning(text, pooled)})
    with torch.inference_mode():
        guider.sample(x, torch.zeros_like(x), TimedCalls(), torch.tensor([0.6, 0.0]), disable_pbar=True, seed=0)
    return taken, {name: list(passages) for name, passages in watch.passages.items()}


def measure(node: type, size: Size, rounds: int, calls: int, watch: OwnTime) -> dict[str, Any]:
    """All three at one size; a round runs each, so that a busy machine slows all alike."""
    models = variants(node, size)
    steps: dict[str, list[float]] = {name: [] for name in models}
    ours: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    for number in bar(range(rounds), unit="round", desc=size.purpose, leave=False):
        # The first of a round meets the caches of the last round, so the order rotates.
        for name in list(models)[number % 3 :] + list(models)[: number % 3]:
            taken, passages = time_calls(models[name], size, calls, watch)
            steps[name] += taken
            for function, seconds in passages.items():
                ours[name].setdefault(function, []).extend(seconds)
    runs: dict[str, dict[str, Any]] = {}
    for name, each in ours.items():
        parts = {
            function: {"per_step": len(seconds) / len(steps[name]), "median_us": round(median(seconds) * 1e6, 2)}
            for function, seconds in each.items()
            if seconds
        }
        own_us = sum(part["per_step"] * part["median_us"] for part in parts.values())
        runs[name] = {
            "step_ms": round(median(steps[name]) * 1e3, 3),
            "own_ms": round(own_us / 1e3, 4),
            "own_share_of_stock_step": round(own_us / 1e6 / median(steps[STOCK]), 6),
            "passages": parts,
        }
    return {
        "purpose": size.purpose,
        "width": size.width,
        "double_blocks": size.double,
        "single_blocks": size.single,
        "grid": list(size.grid),
        "text": size.text,
        "radius": size.radius,
        "runs": runs,
    }


def show(result: dict[str, Any]) -> None:
    """Prints the table of one result."""
    height, width = result["grid"]
    print(
        f"\n{result['purpose']}: {result['double_blocks']} + {result['single_blocks']} blocks of width "
        f"{result['width']}, {height} x {width} tokens"
    )
    print(f"{'':>12} {'step':>12} {'our own':>12} {'of a step':>10}")
    for name, run in result["runs"].items():
        print(f"{name:>12} {run['step_ms']:>9.2f} ms {run['own_ms']:>9.3f} ms {run['own_share_of_stock_step']:>10.3%}")
        for function, part in run["passages"].items():
            print(f"{'':>15}{function}: {part['per_step']:g} times {part['median_us']:.1f} us")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=first_line(__doc__))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--calls", type=int, default=3, help="of each model in a round")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--output", type=Path, help="write a JSON record here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with host_with_pack(parser) as (host, pack):
        watch = OwnTime()
        watch.watch(pack)
        results: list[dict[str, Any]] = []
        for size in SIZES:
            results.append(measure(host.stock("CLEARAttention"), size, options.rounds, options.calls, watch))
            show(results[-1])
    if options.output:
        settings = {name: value for name, value in vars(options).items() if name != "output"}
        write_record(options.output, torch.device("cpu"), {"comfyui": host.version, **settings}, results)


if __name__ == "__main__":
    main()
