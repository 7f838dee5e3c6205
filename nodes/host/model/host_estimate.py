"""What a call takes in memory by the host's own estimate, for models whose blocks are not known here.

Source: ``BaseModel.memory_required`` and ``BaseModel.extra_conds_shapes``, as ``comfy.sampler_helpers.estimate_memory``
asks them; ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher

from .picture_model import PictureModel

WORDS = "unknown model: the host's estimate"
NO_ESTIMATE_WORDS = "unknown model, of which the host has no estimate: whole up to 2048 x 2048 px"

SAFE_PIXELS = 2048 * 2048
"""A picture of this size is computed whole where nobody can say what it takes."""

TOO_MUCH = 2**62
"""Bytes that fit no card."""


@dataclass(frozen=True, eq=False)
class HostCall:
    """One call by the host's estimate.

    Attributes:
        base: The ``comfy.model_base.BaseModel``.
        picture: What is known of it.
        shapes: What its prompt brings along, by name, as the host asks for it.
    """

    base: Any
    picture: PictureModel
    shapes: dict[str, list[Any]]

    @classmethod
    def of(cls, model: ModelPatcher, picture: PictureModel, cond: dict[str, Any]) -> HostCall:
        """The call with a prompt as samplers have it."""
        shapes = model.model.extra_conds_shapes(**cond)
        return cls(model.model, picture, {name: [shape] for name, shape in shapes.items()})

    def estimate(self, image: int, batch: int) -> float:
        """The host's bytes for so many image tokens, which counts places of the latent only."""
        cells = max(image, 1) * self.picture.units.token_cells**2
        time = (1,) if self.picture.units.has_frames else ()
        shape = [batch, self.picture.channels, *time, cells, 1]
        return float(self.base.memory_required(shape, cond_shapes=self.shapes))

    @property
    def has_estimate(self) -> bool:
        """Whether the host says anything."""
        return self.estimate(SAFE_PIXELS, 1) > 0

    def peak_bytes(self, image: int, *, batch: int = 1) -> int:
        """Most bytes for so many image tokens; without an estimate 0 up to a safe size, and too much above."""
        if self.has_estimate:
            return int(self.estimate(image, batch))
        return 0 if image * self.picture.units.token_pixels**2 * batch <= SAFE_PIXELS else TOO_MUCH
