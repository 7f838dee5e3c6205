"""Makes the guidance laboratory's pictures, each once: a folder keeps their latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from torch import Tensor

from clear_core import ClearSpec
from clear_core.integrations.diffusers import apply_clear
from clear_core.integrations.flux_denoiser import FluxDenoiser

from ..model import build_denoiser, with_distilled_weights
from ..tiny_flux.data import held_out_scenes
from ..world import Scene
from .guidance_methods import (
    ABOVE,
    BASE_SIDE,
    COMPARED,
    MAIN,
    Attention,
    Method,
    Start,
    make_base,
    make_large,
    scene_noise,
)
from .kept import kept

SPEC = ClearSpec(8)
AT, BEYOND = 1024, 2048
"""Sides in px: four times the base picture's, and eight times."""

ABOVE_START = Method(schedule="constant", level=2)
"""How the pictures were made that those of ``BEYOND`` px start from, with distilled windows."""


def several_things(count: int) -> list[Scene]:
    """The first held-out scenes with three things, none of them white: white is not told from snow and horizon."""
    scenes = [scene for scene in held_out_scenes(20 * count) if shows_three(scene)]
    return scenes[:count]


def shows_three(scene: Scene) -> bool:
    """Whether a scene has three things that the detector can see."""
    return len(scene.things) == 3 and all(thing.colour != "white" for thing in scene.things)


def window_of(denoiser: FluxDenoiser, attention: Attention, side: int) -> AbstractContextManager[object]:
    """The attention of a run; dense is a window larger than the diagonal, with the same scale and rotary recipe."""
    spec = ClearSpec(side) if attention == "dense" else SPEC
    return apply_clear(denoiser.transformer, spec, backend="dense" if attention == "dense" else "auto")


def denoiser_of(caption: str, attention: Attention) -> FluxDenoiser:
    """The tiny FLUX with a caption, and with distilled weights where they are asked for."""
    denoiser = build_denoiser(caption)
    if attention == "distilled":
        with_distilled_weights(denoiser.transformer, SPEC)
    return denoiser


class Folder:
    """Latents by scene, side, attention and method; a missing one is made.

    Attributes:
        path: The folder.
        on_made: Called with the name of every picture that was made.
    """

    def __init__(self, path: Path, on_made: Callable[[str], None] = lambda name: None) -> None:
        self.path = path
        self.on_made = on_made
        path.mkdir(parents=True, exist_ok=True)

    def base(self, index: int, scene: Scene) -> Start:
        """The base picture of a scene."""

        def make() -> dict[str, Tensor]:
            start = make_base(build_denoiser(scene.caption), scene_noise(index, BASE_SIDE))
            return {"latent": start.latent} | {repr(sigma): x0 for sigma, x0 in start.predictions.items()}

        found = self._kept(f"{index} base", make)
        return Start(found.pop("latent"), {float(sigma): x0 for sigma, x0 in found.items()})

    def large(self, index: int, scene: Scene, attention: Attention, method: Method, side: int = AT) -> Tensor:
        """(1, 16, h, w) of a picture of ``side`` px; one of ``BEYOND`` px is made from one of ``AT`` px."""

        def make() -> dict[str, Tensor]:
            start = (
                self.base(index, scene) if side == AT else Start(self.large(index, scene, attention, ABOVE_START), {})
            )
            denoiser = denoiser_of(scene.caption, attention)
            with window_of(denoiser, attention, side):
                return {"latent": make_large(denoiser, method, start, scene_noise(index, side))}

        return self._kept(f"{index} {side} {attention} {method.name}", make)["latent"]

    def _kept(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        def announced() -> dict[str, Tensor]:
            made = make()
            self.on_made(name)
            return made

        return kept(self.path / f"{name}.safetensors", announced)


def wanted(scenes: int, few: int) -> Iterator[tuple[int, Scene, Attention, Method, int]]:
    """(index, scene, attention, method, side) of every picture; ``few`` of the scenes have all of them."""
    for index, scene in enumerate(several_things(scenes)):
        for method in MAIN:
            yield index, scene, "distilled", method, AT
        if index < few:
            for attention, methods in COMPARED.items():
                for method in methods:
                    yield index, scene, attention, method, AT
            for method in ABOVE:
                yield index, scene, "distilled", method, BEYOND
