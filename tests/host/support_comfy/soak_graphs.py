"""Graphs of a long session: a model with windows, two prompts, a VAE, a picture, and CLEARUpscale over them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from .sampling import Graph

MODEL, CLEAR, POSITIVE, NEGATIVE, VAE, IMAGE, WORK = "1", "2", "3", "4", "5", "6", "7"
SIZES = ("48x32", "32x32", "40x56")
STUDENT = "tiny/clear_local_4_down_2.safetensors"
TRAINED = "trained/tiny_flux.safetensors"
TRAINED_STUDENT = "trained/clear_local_8.safetensors"
TILES = {"tile_width": 64, "tile_height": 64, "tile_overlap": 16}
BASES = ("tiny_flux.safetensors", "other_flux.safetensors")


@dataclass(frozen=True)
class Job:
    """A prompt and how it must end.

    Attributes:
        kind: Name of the function that made it.
        graph: In API form.
        ends: "success", "error", "interrupt" or "refused" (by the server's checks).
        files: Files that it saves if it succeeds.
        words: Parts of the sentence that it ends in.
        repeats: Whether the same graph gives the same results, bit by bit.
    """

    kind: str
    graph: Graph
    ends: str = "success"
    files: int = 2
    words: tuple[str, ...] = ()
    repeats: bool = True

    @property
    def key(self) -> str:
        """The same for the same work."""
        return json.dumps(self.graph, sort_keys=True)


def node(class_type: str, /, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def common(draw: random.Random, base: str | None = None, **clear: Any) -> Graph:
    """A model with windows, two prompts, a VAE and a picture."""
    name = base or draw.choice(BASES)
    clear = {"weights_name": draw.choice(["none", STUDENT]), "radius": 0, **clear}
    if clear["weights_name"] == "none" and not clear["radius"]:
        clear["radius"] = draw.choice([2, 3, 5])
    return {
        MODEL: node("UNETLoader", unet_name=name, weight_dtype=draw.choice(["default", "default", "fp8_e4m3fn"])),
        CLEAR: node("CLEARAttention", model=[MODEL, 0], **clear),
        POSITIVE: node("ClearTestConditioning", seed=draw.randrange(3), tokens=16, guidance=3.5),
        NEGATIVE: node("ClearTestConditioning", seed=7, tokens=draw.choice([9, 16]), guidance=3.5),
        VAE: node("ClearTestPixels"),
        IMAGE: node("LoadImage", image=f"{draw.choice(SIZES)}.png"),
    }


def upscale(graph: Graph, draw: random.Random, **inputs: Any) -> Graph:
    """The graph with CLEARUpscale and both of its results saved."""
    standard: dict[str, Any] = {
        "image": [IMAGE, 0],
        "model": [CLEAR, 0],
        "positive": [POSITIVE, 0],
        "vae": [VAE, 0],
        "upscale_by": 2.0,
        "seed": draw.randrange(2),
        "steps": 2,
        "denoise": 0.5,
    }
    graph[WORK] = node("CLEARUpscale", **{**standard, **inputs})
    graph["8"] = node("SaveLatent", samples=[WORK, 1], filename_prefix="latents/soak")
    graph["9"] = node("SaveImage", images=[WORK, 0], filename_prefix="soak")
    return graph
