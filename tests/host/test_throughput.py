"""Throughput is measured once, and a forecast for a size that was just run is what the run takes.

Time is a clock of the test's own: calls of the model move it, by a rule that is not the one by which work is counted.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.host.support_comfy.pictures import picture
from tests.host.support_comfy.sampling import conditioning, prepared, run_node

TOKEN_SECONDS, PAIR_SECONDS = 1e-4, 2e-6
"""Attention is slower here than its share of the operations."""

COLD_SECONDS = 1000.0
UNITS = {"ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


class PlainVAE:
    """As little as CLEARUpscale needs of a VAE."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        batch, height, width, _ = pixels.shape
        return torch.zeros(batch, 16, height // 8, width // 8)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = latent.shape
        return torch.zeros(batch, 8 * height, 8 * width, 3)


@lru_cache
def window_pairs(grid: tuple[int, int], radius: int, text: int) -> int:
    """Query-key pairs, counted one by one."""
    rows, columns = (axis.flatten().float() for axis in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    squared = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    image = len(rows)
    return int((squared < radius**2).sum()) + 2 * text * image + text**2


class Clock:
    """Stands for the time module, and moves when the model computes.

    Attributes:
        now: Seconds.
        texts: What was written on the node, with the time at which it was.
    """

    def __init__(self) -> None:
        self.now, self.cold, self.texts = 0.0, True, []

    def perf_counter(self) -> float:
        return self.now

    def write(self, text: str, node: Any) -> None:
        self.texts.append((self.now, text))

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        """In place of the windowed attention."""
        grid = options["grid"]
        pairs = window_pairs(grid, options["spec"].radius, q.shape[2] - grid[0] * grid[1])
        self.now += q.shape[0] * PAIR_SECONDS * pairs
        return v.clone()

    def on(self, model: Any, blocks: int = 0) -> Any:
        """A clone whose calls take time; ``blocks`` attend densely instead of computing anything."""

        def call(executor: Any, x: torch.Tensor, timestep: Any, context: torch.Tensor, *rest: Any, **more: Any) -> Any:
            tokens = context.shape[1] + x.shape[-2] * x.shape[-1] // 4
            self.now += x.shape[0] * (TOKEN_SECONDS * tokens + blocks * PAIR_SECONDS * tokens**2)
            self.now += COLD_SECONDS * self.cold
            self.cold = False
            return torch.zeros_like(x) if blocks else executor(x, timestep, context, *rest, **more)

        clone = model.clone()
        clone.add_wrapper_with_key("diffusion_model", "test_clock", call)
        return clone


def seconds_in(text: str, pattern: str) -> float:
    """The time in a line, such as "about 3.2 s"."""
    value, unit = re.search(pattern, text).groups()
    return float(value.replace(",", "")) * UNITS[unit]


TIME = r"([\d.,]+) (ms|s|min|h)"


@pytest.fixture
def throughput(pack, monkeypatch):
    module = import_module(f"{pack.__name__}.nodes.host.model.throughput")
    monkeypatch.setattr(module, "_last", [])
    return module


@pytest.fixture
def clock(pack, throughput, monkeypatch):
    clock, wing = Clock(), f"{pack.__name__}.nodes.host.upscale"
    monkeypatch.setattr(throughput, "time", clock)
    monkeypatch.setattr(import_module(f"{wing}.forecast"), "_evaluations", {})
    for name in ("run", "progress"):
        monkeypatch.setattr(import_module(f"{wing}.{name}"), "write_on_node", clock.write)
    override = import_module(f"{pack.__name__}.nodes.host.model.attention_override")
    monkeypatch.setattr(override, "PreparedAttention", prepared(clock.attend))
    return clock


def prompt(seed: int = 2, tokens: int = 20) -> list:
    generator = torch.Generator().manual_seed(seed)
    return conditioning(torch.randn(1, tokens, 64, generator=generator), torch.randn(1, 32, generator=generator))


CASES = {
    "whole frame": {},
    "tiles": {"tile_width": 128, "tile_height": 160, "tile_overlap": 32},
    "two stages": {"upscale_by": 4.0, "stage_denoise": "0.7, 0.5"},
    "two stages in tiles": {"upscale_by": 4.0, "tile_width": 256, "tile_height": 256, "tile_overlap": 64},
    "cfg": {"cfg": 2.0},
    "two evaluations a step": {"sampler_name": "dpm_2"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("windows", [True, False], ids=["windows", "dense"])
def test_a_forecast_for_what_was_just_run_is_what_it_takes(host, clock, tiny_flux, clear_node, case, windows):
    model = clock.on(clear_node(tiny_flux(), radius=3)) if windows else clock.on(tiny_flux(), blocks=4)
    inputs = {"image": picture(96, 160), "model": model, "positive": prompt(), "vae": PlainVAE(), "steps": 4}
    if "cfg" in CASES[case]:
        inputs["negative"] = prompt(5, tokens=33)  # Another length, so that it is a call of its own.
    for _ in range(2):
        begun = len(clock.texts)
        start = clock.now
        with torch.inference_mode():
            run_node(host.stock("CLEARUpscale"), **inputs, **CASES[case])
    taken = clock.now - start
    (_, first), *steps = clock.texts[begun:]
    assert seconds_in(first, f"time: about {TIME}") == pytest.approx(taken, rel=0.2)
    stages = 2 if "stages" in case else 1
    assert len(steps) == 4 * stages
    for index, (now, text) in enumerate(steps):
        end = steps[index // 4 * 4 + 3][0]
        if index % 4 != 3:
            assert seconds_in(text, f"{TIME} left in this stage") == pytest.approx(end - now, rel=0.2)


def test_no_time_is_left_after_more_steps_than_were_set(host, clock, tiny_flux):
    """dpm_adaptive takes as many as it needs; the next run is forecast by all of them."""
    model = clock.on(tiny_flux(), blocks=4)
    inputs = {"image": picture(32, 32), "model": model, "positive": prompt(), "vae": PlainVAE(), "steps": 3}
    for _ in range(2):
        begun, start = len(clock.texts), clock.now
        with torch.inference_mode():
            run_node(host.stock("CLEARUpscale"), sampler_name="dpm_adaptive", **inputs)
    (_, first), *steps = clock.texts[begun:]
    assert len(steps) > 3 and not any("-" in text for _, text in steps)
    assert seconds_in(first, f"time: about {TIME}") == pytest.approx(clock.now - start, rel=0.2)


def test_before_anything_was_timed_no_time_is_given(host, clock, tiny_flux):
    inputs = {"image": picture(32, 32), "positive": prompt(), "vae": PlainVAE(), "steps": 1}
    with torch.inference_mode():
        run_node(host.stock("CLEARUpscale"), model=clock.on(tiny_flux(), blocks=4), **inputs)
    assert clock.texts[0][1].endswith("time: known after the first step")


def test_the_node_that_inspects_gives_the_time_of_the_same_run(host, clock, throughput, tiny_flux, clear_node):
    """One measurement serves both."""
    model = clock.on(clear_node(tiny_flux(), radius=3))
    image, positive = picture(160, 256), prompt(tokens=512)
    inputs = {"image": image, "positive": positive, "vae": PlainVAE(), "steps": 4, "upscale_by": 1.0}
    with torch.inference_mode():
        run_node(host.stock("CLEARUpscale"), model=model, **inputs)
        (_, text) = run_node(host.stock("CLEARInspect"), model=model, image=image)
    one_step = (clock.now - COLD_SECONDS) / 4
    assert seconds_in(text, f"time of a step: {TIME}") == pytest.approx(one_step, rel=0.2)
    assert "256 x 160 px with radius 3" in throughput.last_throughput().what


def sample(model: Any, steps: int, cfg: float = 1.0) -> None:
    """A stock run at 256 x 256 px."""
    import comfy.sample

    latent, both = torch.zeros(1, 16, 32, 32), prompt(tokens=512)
    arguments = (steps, cfg, "euler", "simple", both, both, latent)
    with torch.inference_mode():
        comfy.sample.sample(model, torch.randn_like(latent), *arguments, disable_pbar=True, seed=1)


def test_times_are_those_of_the_last_run(host, tiny_flux, clear_node, throughput, monkeypatch):
    """A step at the size that was timed takes as long as it took; the first call, which warms up, does not count."""

    def time_of_a_step() -> str:
        _, text = run_node(host.stock("CLEARInspect"), model=model, image=torch.rand(1, 256, 256, 3))
        return text.split("time of a step: ")[1].splitlines()[0]

    model = clear_node(tiny_flux(), radius=4)
    assert time_of_a_step() == "not known, nothing was timed"
    # The run begins, its first of four calls has ended, the run ends.
    clock = iter((100.0, 150.0, 156.0))
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    sample(model, 4)
    last = throughput.last_throughput()
    assert last.calls == 3 and "256 x 256 px" in last.what and "radius 4" in last.what
    assert time_of_a_step().startswith("2 s (from 256 x 256 px")


def test_each_call_s_work_is_counted(tiny_flux, clear_node, pack, throughput, monkeypatch):
    """Two prompts in a batch are twice the work; blocks kept dense count as dense ones, and so does a dense model."""
    counted = []
    monkeypatch.setattr(throughput.Run, "throughput", lambda run, out: counted.append(run.gflops))
    dense = {"radius": 4, "dense_blocks": "d0-1, s0-1"}
    for widgets, cfg in (({"radius": 4}, 1.0), ({"radius": 4}, 2.0), (dense, 1.0)):
        sample(clear_node(tiny_flux(), **widgets), 2, cfg)
    sample(throughput.timed(tiny_flux()), 2)
    facts = import_module(f"{pack.__name__}.nodes.host.inspect.read_model").inspect_model(
        clear_node(tiny_flux(), radius=4), (256, 256), 1.0, "picture"
    )
    row = facts.row((256, 256))
    assert counted == pytest.approx([2 * row.window, 4 * row.window, 2 * row.dense, 2 * row.dense])
