"""Random combinations of everything that CLEARUpscale takes, each drawn from a number and built into a graph.

Where there are tiles, the model is one block with windows of radius 1: a token of the picture sees itself, the text and
references only, so that tiles must give what the whole frame gives.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .graph_inputs import noise, prompt
from .pictures import picture
from .sampling import Graph, run_node

TILES = {"tile_width": 48, "tile_height": 64, "tile_overlap": 16}
TEXT = 7
CACHED = {"reuse_threshold": 100.0, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
"""EasyCache that skips whatever it can: a smaller threshold may decide otherwise for a tile than for the frame."""

SIDES = (32, 40, 48, 33, 47)
DTYPES = {"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}
MASKS = ("float", "bool", "uint8", "half", "2-D", "4-D", "several", "empty")
LISTABLE = ("image", "positive", "mask", "seed")


@dataclass(frozen=True)
class Combination:
    """One draw; ``number`` decides everything.

    Attributes:
        sizes: (height, width) of the pictures of each item; one item without lists.
        channels, dtype, batch: Of the pictures.
        mask: One of :data:`MASKS`, or "".
        references: Reference latents.
        region: "area" or "mask" for a second prompt that has one, or "".
        control: "plain" or "masked" (a mask beside its hint), or "".
        lists: Inputs that are lists.
        upscale_by: 1 or 2 in one stage, 3 in two.
        tiles, cache, negative, shared_text: What the words say; ``shared_text``: a batch of prompts.
        windows: Radius; the one of tiles is 1.
        model_dtype: "float" or "bfloat16".
        real_vae: The host's own VAE class, not a stand-in.
        cache_type: Of the executor.
    """

    number: int
    sizes: tuple[tuple[int, int], ...]
    channels: int
    dtype: str
    batch: int
    mask: str
    references: int
    region: str
    control: str
    lists: tuple[str, ...]
    upscale_by: float
    tiles: bool
    cache: bool
    negative: bool
    windows: int
    model_dtype: str
    real_vae: bool
    cache_type: str

    @property
    def is_refused(self) -> bool:
        """Whether one sentence is the answer: the stock graph does not take such pictures either."""
        return self.dtype == "bytes"

    @property
    def steps(self) -> int:
        """A cache needs more of them: it skips the third at the earliest."""
        return 4 if self.cache else 2

    @property
    def stages(self) -> int:
        return 2 if self.upscale_by > 2 else 1

    @property
    def tolerance(self) -> float:
        """Relative error of latents. A second stage begins with 8-bit pixels, a few of which fall the other way."""
        if self.model_dtype == "bfloat16":
            return 0.05
        return 5e-3 if self.stages > 1 else 2e-3


def combination(number: int) -> Combination:
    draw = random.Random(f"sweep {number}")
    tiles = draw.random() < 0.5
    lists = tuple(name for name in LISTABLE if draw.random() < 0.5) if draw.random() < 0.4 else ()
    mask = draw.choice(MASKS) if draw.random() < 0.6 or "mask" in lists else ""
    region = draw.choice(("", "", "area", "mask"))
    # EasyCache begins anew where the shape of its input changes: with an area in every call of the frame, but not in
    # those of a tile inside the area.
    cache = draw.random() < 0.25 and not (tiles and region == "area")
    return Combination(
        number,
        sizes=tuple((draw.choice(SIDES), draw.choice(SIDES)) for _ in range(draw.choice((2, 2, 3)) if lists else 1)),
        channels=draw.choice((3, 3, 3, 3, 4, 4, 1, 2)),
        dtype=draw.choice(("float",) * 5 + ("half", "bfloat16", "double", "bytes")),
        batch=draw.choice((1, 1, 1, 2, 3)),
        mask=mask,
        references=draw.choice((0, 0, 0, 1, 2)),
        region=region,
        control=draw.choice(("", "", "plain", "masked")),
        lists=lists,
        upscale_by=draw.choice((1.0, 2.0, 2.0, 3.0)),
        tiles=tiles,
        cache=cache,
        negative=draw.random() < 0.3,
        windows=1 if tiles else draw.randint(2, 5),
        model_dtype=draw.choice(("float",) * 5 + ("bfloat16",)),
        real_vae=draw.random() < 0.3,
        cache_type=draw.choice(("CLASSIC", "RAM_PRESSURE")),
    )


@dataclass(frozen=True)
class Item:
    """The inputs of one run: of a list, one item."""

    image: Tensor
    positive: list
    negative: list | None
    mask: Tensor | None
    seed: int


class Maker:
    """Builds the inputs of a combination.

    Args:
        host: The booted host.
        controls: ControlNets of the host by "plain" and "masked".
        vae: Of the host, for them.
    """

    def __init__(self, host: Any, controls: dict[str, Any], vae: Any) -> None:
        self.host, self.controls, self.vae = host, controls, vae

    def lists(self, drawn: Combination) -> dict[str, list[Any]]:
        """Every input as the list of its items: as many as pictures, or one where the input is no list."""
        draw = random.Random(drawn.number)
        items = len(drawn.sizes)

        def times(name: str) -> int:
            # A shorter list repeats its last item, as in the host; the longest one decides how many runs there are.
            return items if name in drawn.lists[:1] else draw.randint(1, items) if name in drawn.lists else 1

        made = {
            "image": [self.image(drawn, index) for index in range(times("image"))],
            "positive": [self.positive(drawn, 10 + index) for index in range(times("positive"))],
            "seed": [100 * (index + 1) for index in range(times("seed"))],
        }
        if drawn.mask:
            made["mask"] = [self.mask(drawn, index) for index in range(times("mask"))]
        if drawn.negative:
            made["negative"] = [prompt(TEXT, 50)]
        return made

    def image(self, drawn: Combination, index: int) -> Tensor:
        pixels = picture(*drawn.sizes[index], batch=drawn.batch, seed=drawn.number + 1000 * index)
        if drawn.channels < 3:
            pixels = pixels[..., : drawn.channels]
        elif drawn.channels == 4:
            pixels = torch.cat([pixels, 0.5 * torch.ones_like(pixels[..., :1])], dim=-1)
        return (pixels * 255).byte() if drawn.dtype == "bytes" else pixels.to(DTYPES[drawn.dtype])

    def mask(self, drawn: Combination, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(drawn.number + index)
        count = drawn.batch + 1 if drawn.mask == "several" else drawn.batch if drawn.number % 2 else 1
        height, width = drawn.sizes[0] if drawn.number % 3 else (24, 36)
        coarse = torch.rand(count, 1, 3, 4, generator=generator)
        mask = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[:, 0]
        forms = {
            "bool": lambda: mask > 0.5,
            "uint8": lambda: (mask > 0.5).to(torch.uint8),
            "half": mask.half,
            "2-D": lambda: mask[0],
            "4-D": lambda: mask[:, None],
            "empty": lambda: torch.zeros_like(mask),
        }
        return forms.get(drawn.mask, lambda: mask)()

    def positive(self, drawn: Combination, seed: int) -> list:
        extras: dict[str, Any] = {}
        if drawn.references:
            extras["reference_latents"] = [
                noise(6, 4 + 2 * index, seed=seed + index) for index in range(drawn.references)
            ]
        if drawn.control:
            extras |= {"control": self.control(drawn, seed), "control_apply_to_uncond": True}
        conditioning = prompt(TEXT, seed, **extras)
        if not drawn.region:
            return conditioning
        second = prompt(TEXT, seed + 20)
        if drawn.region == "area":
            node, inputs = "ConditioningSetArea", {"width": 16, "height": 32, "x": 16, "y": 0, "strength": 0.8}
        else:
            shape = torch.zeros(1, 24, 32)
            shape[:, 4:20, 6:30] = torch.linspace(0.2, 1, 24)
            node, inputs = "ConditioningSetMask", {"mask": shape, "strength": 0.8, "set_cond_area": "default"}
        return conditioning + run_node(self.host.stock(node), conditioning=second, **inputs)[0]

    def control(self, drawn: Combination, seed: int) -> Any:
        from .controls import PointwiseControl  # The host has to be booted first.

        control = PointwiseControl() if drawn.tiles else self.controls[drawn.control].copy()
        hint = picture(40, 56, seed=seed).movedim(-1, 1)
        mask = torch.zeros(1, 1, 40, 56)
        mask[..., :30] = 1
        is_masked = drawn.control == "masked"
        vae = self.vae if control.latent_format is not None else None
        return control.set_cond_hint(hint, 0.8, (0.0, 1.0), vae=vae, extra_concat=[mask] if is_masked else [])


def items_of(lists: dict[str, list[Any]]) -> list[Item]:
    """What each run gets, by the host's rule for lists: shorter ones repeat their last item."""
    count = max(map(len, lists.values()))
    return [
        Item(
            **{"mask": None, "negative": None}
            | {name: values[min(index, len(values) - 1)] for name, values in lists.items()}
        )
        for index in range(count)
    ]


def graph_of(drawn: Combination, given: list[str]) -> Graph:
    """The graph of a combination, whose inputs come from the nodes ClearTestGive by name; "keep" keeps the results."""
    graph: Graph = {
        name: {"class_type": "ClearTestGive", "inputs": {"name": name, "run": drawn.number}} for name in given
    }
    graph["clear"] = {
        "class_type": "CLEARAttention",
        "inputs": {"model": ["model", 0], "weights_name": "none", "radius": drawn.windows, "down_factor": 1},
    }
    last = "clear"
    if drawn.cache:
        graph["cache"] = {"class_type": "EasyCache", "inputs": {"model": ["clear", 0], **CACHED}}
        last = "cache"
    graph["upscale"] = {
        "class_type": "CLEARUpscale",
        "inputs": {
            **{name: [name, 0] for name in given},
            "model": [last, 0],
            "upscale_by": drawn.upscale_by,
            "steps": drawn.steps,
            "cfg": 2.5 if drawn.negative else 1.0,
            "denoise": 0.6,
            "stage_denoise": "0.7, 0.5",
            **(TILES if drawn.tiles else {}),
        },
    }
    graph["keep"] = {"class_type": "ClearTestKeep", "inputs": {"image": ["upscale", 0], "latent": ["upscale", 1]}}
    return graph
