"""What the nodes say is what the engine does: 200 random settings, sizes and models, each run and counted.

Nothing here reads the value from which the texts are made. Windows, scale and NTK factor are taken from the calls that
reach the engine, the host's attention and the host's rotary embedding, and pairs are counted in masks written out here.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.host.support_comfy import relatives
from tests.host.support_comfy.flux import build_flux
from tests.host.support_comfy.sampling import conditioning, predict, prepared

CASES = 200
TEXT = 512
HIRES = 120
"""Image tokens above which a picture counts as large in these tests."""

BLOCKS = {"FLUX.1": (1, 2), "Chroma": (2, 1)}
HEAD_DIM = 128
SMALL = {"hidden_size": HEAD_DIM, "num_heads": 1}


@dataclass
class Engine:
    """What one run of a model computed, block by block.

    Attributes:
        calls: (windowed, pairs, scale over the plain one) of every attention call.
        backends: Backends that ran.
        thetas: Bases of the rotary embedding.
        texts: What the log calls the calls of the model.
    """

    calls: list[tuple[bool, int, float]] = field(default_factory=list)
    backends: set[str] = field(default_factory=set)
    thetas: set[float] = field(default_factory=set)
    texts: list[str] = field(default_factory=list)

    @property
    def windowed(self) -> int:
        return sum(windowed for windowed, _, _ in self.calls)


def counted_pairs(length: int, grid: tuple[int, int], references: int, spec: Any) -> int:
    """Query-key pairs of one sequence, counted in a mask; an overview leaves out the cells inside a window."""
    radius, down = spec.radius, spec.down_factor
    height, width = grid
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    seen = ((places[:, None] - places[None]) ** 2).sum(-1) < radius**2
    image = height * width
    others = length - image
    cells = places[:, 0] // down * -(-width // down) + places[:, 1] // down
    pooled = sum(
        int((~seen[:, cells == cell]).any(1).sum()) if spec.overview else image for cell in cells.unique() if down > 1
    )
    return int(seen.sum()) + image * others + pooled + others * length


@pytest.fixture
def engine(pack, monkeypatch):
    """Watches the engine, the host's attention and the host's rotary embedding; ``engine.run`` is what they did."""
    import comfy.ldm.flux.layers as layers
    import comfy.ldm.flux.math as host

    override = import_module(f"{pack.__name__}.nodes.host.model.attention_override")
    choose = import_module(f"{pack.__name__}.clear_core.attention.choose")
    core = import_module(f"{pack.__name__}.clear_core.attention")
    watch = SimpleNamespace(run=Engine())
    own_attention, own_clear, own_rope, own_call = (
        host.optimized_attention, core.clear_attention, layers.rope, override.WindowCall.__init__
    )  # fmt: skip

    def clear_attention(q: Any, k: Any, v: Any, **options: Any) -> Any:
        spec = options["spec"]
        pairs = counted_pairs(q.shape[2], options["grid"], options["reference_tokens"], spec)
        watch.run.calls.append((True, pairs, options["scale"] * q.shape[-1] ** 0.5))
        return own_clear(q, k, v, **options)

    def attention(q: Any, k: Any, v: Any, heads: int, **options: Any) -> Any:
        # Runs as another node's override below CLEAR's: q comes with the scale in it.
        def previous(func: Any, scaled: Any, *args: Any, **kwargs: Any) -> Any:
            scale = float((scaled.double() * q.double()).sum() / (q.double() ** 2).sum())
            watch.run.calls.append((False, q.shape[2] * k.shape[2], scale))
            return func(scaled, *args, **kwargs)

        chosen = options["transformer_options"]["optimized_attention_override"].__self__
        chosen.previous = previous
        return own_attention(q, k, v, heads, **options)

    def rope(ids: Any, dim: int, theta: float) -> Any:
        watch.run.thetas.add(float(theta))
        return own_rope(ids, dim, theta)

    def window_call(call: Any, *args: Any, **kwargs: Any) -> None:
        own_call(call, *args, **kwargs)
        watch.run.texts.append(call.words)

    monkeypatch.setattr(override, "PreparedAttention", prepared(clear_attention))
    monkeypatch.setattr(host, "optimized_attention", attention)
    monkeypatch.setattr(layers, "rope", rope)
    monkeypatch.setattr(override.WindowCall, "__init__", window_call)
    watch_backends(choose, watch, monkeypatch)
    return watch


def watch_backends(choose: Any, watch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Note the name of each backend that computes a call."""

    def watched(name: str, own: Any) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            watch.run.backends.add(name)
            return own(*args, **options)

        return run

    for backend in choose.REGISTRY:
        monkeypatch.setattr(type(backend), "run", watched(backend.name, type(backend).run))


def random_widgets(rng: random.Random, blocks: int, image: int) -> dict[str, Any]:
    """Widgets of CLEARAttention in which every reason for windows and against them comes up."""
    start, end = sorted((rng.random(), rng.random()))
    return {
        "radius": rng.choice((1, 2, 3, 5, 8, 24)),
        "down_factor": rng.choice((1, 1, 2, 3)),
        "ntk_factor": rng.choice((0.0, 0.0, 1.0, 2.5)),
        "proportional_attention": rng.choice(("auto", "auto", "on", "off")),
        "start_percent": rng.choice((0.0, 0.0, start)),
        "end_percent": rng.choice((1.0, 1.0, end)),
        "dense_blocks": ", ".join(map(str, rng.sample(range(blocks), rng.choice((0, 0, 0, 1, 2, blocks))))),
        "min_tokens": rng.choice((0, 0, 0, image, image + 1)),
        "backend": rng.choice(("auto", "auto", "gather", "dense")),
    }


def test_texts_say_what_the_engine_does(host, pack, clear_node, engine, monkeypatch):
    def core(name: str) -> Any:
        return import_module(f"{pack.__name__}.clear_core.{name}")

    def nodes(name: str) -> Any:
        return import_module(f"{pack.__name__}.nodes.host.{name}")

    families = core("families")
    for family in families.FAMILIES:
        monkeypatch.setitem(vars(family), "hires_tokens", HIRES)
    models = {
        "FLUX.1": build_flux(depth=1, depth_single_blocks=2, **SMALL),
        "Chroma": relatives.build_chroma(depth=2, depth_single_blocks=1, out_dim=128, **SMALL),
    }
    generator = torch.Generator().manual_seed(0)
    prompt = conditioning(torch.randn(1, TEXT, 64, generator=generator), torch.randn(1, 32, generator=generator))
    rng = random.Random(13)
    seen, wrong = Counter(), []
    for case in range(CASES):
        name = rng.choice(list(models))
        width, height = (8 * rng.randint(6, 32) for _ in range(2))
        rows, columns = (-(-side // 16) for side in (height, width))
        widgets = random_widgets(rng, sum(BLOCKS[name]), rows * columns)
        sigma = rng.uniform(0.05, 1.0)
        model = clear_node(models[name], **widgets)
        tiles = None
        if rng.random() < 0.2 and min(rows, columns) >= 6:
            tiles = core("sdedit").TileLayout.of_pixels((rows, columns), 16 * (rows // 2 + 1), 16 * columns, 16)

        engine.run = Engine()
        x = torch.randn(1, 16, height // 8, width // 8, generator=generator)
        if tiles:
            x = torch.randn(1, 16, 2 * rows, 2 * columns, generator=generator)
        in_tiles = nodes("upscale.tiled_model").TiledModel(tiles, lambda *_: None).install(model) if tiles else model
        predict(in_tiles, x, sigma, prompt)

        patch = nodes("model.read").clear_of(model)
        shape = nodes("model.family").model_shape(model)
        sampling = model.get_model_object("model_sampling")
        start, end = (sampling.percent_to_sigma(widgets[f"{side}_percent"]) for side in ("start", "end"))
        case_is = Case(engine.run, shape.blocks, (rows, columns), widgets, end <= sigma <= start, tiles)
        if not tiles:
            case_is.check_line(core("inspection.cost_line").cost_line(patch.settings, shape, (width, height)))
            facts = nodes("inspect.read_model").inspect_model(model, (height, width), 1.0, "latent")
            case_is.check_report(core("inspection.report").report(facts), shape, core)
        stage = core("sdedit").Stage(1, (height, width), (height, width), 1.0, 0)
        info = nodes("upscale.info")
        settings = nodes("upscale.stage").StageSettings(
            tile_height=16 * tiles.tile[0] if tiles else 0,
            tile_width=16 * tiles.tile[1] if tiles else 0,
            tile_overlap=16,
        )
        inputs = nodes("upscale.stage").StageInputs(model, prompt, object())
        case_is.check_info(info.effect_words(inputs, stage, settings, 1))
        case_is.check_log()
        wrong += [(case, name, (width, height), widgets, sentence) for sentence in case_is.wrong]
        seen.update(case_is.kinds)
    assert not wrong, "\n".join(map(str, wrong))
    # Every kind of case came up.
    kinds = {"windows", "min_tokens", "dense_blocks", "covers", "out of range", "some blocks", "tiles", "hires", "ntk"}
    assert {kind for kind in kinds if seen[kind] >= 3} == kinds, seen


@dataclass
class Case:
    """One run of a model, and what was wrong in the texts about it."""

    run: Engine
    blocks: int
    grid: tuple[int, int]
    widgets: dict[str, Any]
    in_range: bool
    tiles: Any
    wrong: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        (theta,) = self.run.thetas
        self.scale, self.ntk = self.run.calls[0][2], theta / 10000
        self.expect(all(abs(scale - self.scale) < 1e-5 for _, _, scale in self.run.calls), "one scale in all blocks")
        self.calls = len(self.tiles.tiles) if self.tiles else 1
        self.expect(len(self.run.calls) == self.blocks * self.calls, "each block attends once a call")
        self.expect(len(self.run.backends) <= 1, "one backend")
        self.windowed = self.run.windowed // self.calls
        self.pairs = sum(pairs for _, pairs, _ in self.run.calls)
        kinds = {
            "windows": self.windowed > 0,
            "out of range": not self.in_range,
            "some blocks": 0 < self.windowed < self.blocks,
            "tiles": self.tiles is not None,
            "hires": abs(self.scale - 1) > 1e-3,
            "ntk": self.ntk != 1,
        }
        self.kinds |= {kind for kind, holds in kinds.items() if holds}

    def expect(self, holds: bool, sentence: str) -> None:
        if not holds:
            self.wrong.append(sentence)

    def expect_windows(self, text: str, inactive: str) -> None:
        """``text`` counts windows; ``inactive`` is how it begins if there are none in any step."""
        if not self.in_range:
            self.expect(self.run.windowed == 0, "windows outside the active range")
        elif text.startswith(inactive):
            self.expect(self.windowed == 0, f"windows, but: {text}")
            self.kinds |= {reason for reason in ("min_tokens", "dense_blocks", "covers") if reason in text}
        else:
            found = text.split(" of ")[0].split(" in ")
            count = int(found[1]) if " blocks" in text else self.blocks
            self.expect(self.windowed == count, f"{self.windowed} blocks with windows, but: {text}")

    def check_line(self, line: str) -> None:
        tokens = self.grid[0] * self.grid[1]
        self.expect(f": {tokens:,} tokens, " in line, f"tokens: {line}")
        if not self.in_range:
            self.expect("of the sampling" in line or "dense attention: " in line, f"range: {line}")
            return
        dense = self.blocks * (tokens + TEXT) ** 2
        self.expect(("dense attention: " in line) == (self.windowed == 0), f"{self.windowed} blocks: {line}")
        if "dense attention: " not in line:
            said = float(line.split("tokens, ")[1].split(" %")[0])
            self.expect(f"{said / 100:.2g}" == f"{self.pairs / dense:.2g}", f"{self.pairs / dense}: {line}")
        windows = [pairs for windowed, pairs, _ in self.run.calls if windowed]
        slower = bool(windows) and windows[0] > (tokens + TEXT) ** 2 / 2
        self.expect(("slower than dense" in line) == slower, f"slower: {line}")

    def check_report(self, text: str, shape: Any, core: Any) -> None:
        lines = dict(line.split(": ", 1) for line in text.split("--- for bug reports ---\n")[1].splitlines())
        self.expect_windows(lines["windows at this size"], "no")
        self.expect(lines["ntk factor"].split(" ")[0] == f"{self.ntk:g}", f"ntk {self.ntk}: {lines['ntk factor']}")
        scale = float(lines["attention scale"].split(" ")[0]) * HEAD_DIM**0.5
        self.expect(abs(scale - self.scale) < 2e-5, f"scale {self.scale}: {lines['attention scale']}")
        if self.in_range:
            self.expect({lines["backend"].split(" ")[0]} == (self.run.backends or {"dense"}), lines["backend"])
            length = self.grid[0] * self.grid[1] + TEXT
            work = core("cost").model_gflops(length, self.pairs, shape.blocks, shape.width, shape.mlp_ratio)
            said = lines["work of a step"].split(" ")[0]
            self.expect(said == core("inspection.units").significant(work / 1000, 3), f"work {work}: {said}")
            circle = text.splitlines()[0]
            self.expect(("circle" in circle) == (self.windowed > 0), circle)

    def check_info(self, text: str) -> None:
        windows, ntk, scale, backend = text.split(" attention: ")[1].rsplit(", ", 3)
        self.expect_windows(windows, "no windows")
        self.expect(ntk == f"ntk {self.ntk:g}", f"ntk {self.ntk}: {text}")
        value, kind = scale.removeprefix("scale ").split(" ")
        self.expect(abs(float(value) * HEAD_DIM**0.5 - self.scale) < 2e-5, f"scale {self.scale}: {text}")
        self.expect(kind == "(plain)" or self.widgets["proportional_attention"] != "off", text)
        if self.in_range:
            self.expect({backend.removeprefix("backend ")} == (self.run.backends or {"dense"}), text)

    def check_log(self) -> None:
        height, width = (16 * side for side in self.grid)
        words = f"{width} x {height} px " + ("with radius" if self.windowed else "without windows")
        self.expect(all(text.startswith(words) for text in self.run.texts), f"{words}: {self.run.texts}")
