"""Rotary position embedding at high resolution: how its base is stretched.

A rotary embedding turns position p by the angles p * omega_i, where an axis of size d has the d/2 frequencies
omega_i = theta ** -(2i/d). Larger pictures have positions that the model was not trained for; a larger base slows the
frequencies, the low ones most. Three ways of it, by name:

- ``constant``: theta * factor, at every frequency and in every step. Source: section 4.2 of the paper and its
  high-resolution notebook (``ntk_factor = 10``).
- ``clipped``: the same, but no frequency is slowed more than plain interpolation would slow it, by the square root of
  N/N0 (N tokens of the frame, N0 of the size the model was trained at). Source: I-Max, arXiv 2410.07536, ``rope`` in
  its transformer_flux.py. Its N also counts what its repeated prompt has past 512 tokens; here N is the image alone,
  and N/N0 at least 1.
- ``fading``: the base starts high and falls back to the model's own as the noise goes, theta * b ** (2 t^2) at noise
  level t, on the axes of rows and columns only. b is the factor if one is set, else (side/side0) ** (d/(d-2)), and at
  least 1, with the side of the frame along that axis. Source: DyPE, the "ntk" of ``FluxPosEmbed`` in its
  flux/transformer_flux.py (https://github.com/guyyariv/DyPE). It takes the side from the largest position of a call, so
  that large reference pictures count; here it is the frame's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .families import FLUX1, Family

NTK = ("constant", "clipped", "fading")

GRID_AXES = (1, 2)
"""The rotary axes that count rows and columns; axis 0 counts reference pictures and is 0 for text and image."""


@dataclass(frozen=True)
class RopeStretch:
    """How the rotary base is stretched in one frame. The noise level of a call is no part of it.

    Attributes:
        kind: One of :data:`NTK`.
        factor: On the rotary base; 1 is off, 0 (of "fading" only) takes it from the frame's sides.
        frame: (h, w) of the whole frame in tokens.
        native_tokens: Image tokens of the size the model was trained at.
    """

    kind: str = "constant"
    factor: float = 1.0
    frame: tuple[int, int] = (1, 1)
    native_tokens: int = FLUX1.native_tokens

    @classmethod
    def of(cls, kind: str, wanted: float, frame: tuple[int, int], family: Family = FLUX1) -> RopeStretch:
        """What a kind and a factor come to.

        Args:
            kind: One of :data:`NTK`.
            wanted: Factor on the base. 0 decides by the frame: for "fading" by its sides, else as :func:`ntk_factor`.
            frame: (h, w) of the whole frame in tokens.
            family: Whose recipe and native size it is.
        """
        factor = float(wanted) if kind == "fading" else ntk_factor(frame[0] * frame[1], wanted, family)
        return cls(kind, factor, frame, family.native_tokens)

    @property
    def growth(self) -> tuple[float, float]:
        """(rows, columns) of the frame over the native side."""
        side = math.sqrt(self.native_tokens)
        return self.frame[0] / side, self.frame[1] / side

    @property
    def clip(self) -> float:
        """What plain interpolation divides each frequency by: the square root of N/N0, at least 1."""
        return math.sqrt(max(1.0, self.frame[0] * self.frame[1] / self.native_tokens))

    @property
    def is_off(self) -> bool:
        """Whether all frequencies stay the model's own at every noise level."""
        if self.kind == "fading" and self.factor == 0:
            return max(self.growth) <= 1
        return self.factor == 1 or (self.kind == "clipped" and self.factor > 1 and self.clip == 1)

    @property
    def fades(self) -> bool:
        """Whether the frequencies depend on the noise level."""
        return self.kind == "fading" and not self.is_off

    @property
    def base_factor(self) -> float | None:
        """The factor on the base, 1 if nothing changes; None if axes, frequencies or noise levels have their own."""
        if self.is_off:
            return 1.0
        return self.factor if self.kind == "constant" else None

    def __str__(self) -> str:
        """For users: "10", "10 clipped at 4", "fading from 100", "fading for 4 x 4 native sides" (width first)."""
        if self.base_factor is not None:
            return f"{self.base_factor:g}"
        if self.kind == "clipped":
            return f"{self.factor:g} clipped at {self.clip:.3g}"
        if self.factor:
            return f"fading from {self.factor**2:g}"
        height, width = self.growth
        return f"fading for {width:.3g} x {height:.3g} native sides"

    def frequencies(self, theta: float, axes_dim: Sequence[int], sigma: float = 1.0) -> tuple[Tensor, ...]:
        """The rotary frequencies of one call.

        Args:
            theta: The model's own rotary base (FLUX: 10000).
            axes_dim: Size d of each axis, even (FLUX: 16, 56, 56).
            sigma: Noise level of the call, 0 to 1; values outside count as the nearer end. Only "fading" reads it.

        Returns:
            (d / 2,) float64 for each axis, highest first, on the CPU.
        """
        return tuple(self._axis_frequencies(theta, axis, dim, sigma) for axis, dim in enumerate(axes_dim))

    def _axis_frequencies(self, theta: float, axis: int, dim: int, sigma: float) -> Tensor:
        # The expressions of the host's own rope, so that the same base gives the same bits.
        exponents = torch.linspace(0, (dim - 2) / dim, steps=dim // 2, dtype=torch.float64)
        if self.is_off:
            return 1.0 / (theta**exponents)
        if self.kind == "fading":
            return 1.0 / ((theta * self._faded(axis, dim, sigma)) ** exponents)
        stretched = 1.0 / (ntk_theta(theta, self.factor) ** exponents)
        if self.kind == "clipped":
            return torch.maximum(stretched, 1.0 / (theta**exponents) / self.clip)
        return stretched

    def _faded(self, axis: int, dim: int, sigma: float) -> float:
        """The factor on the base of one axis at a noise level."""
        if axis not in GRID_AXES:
            return 1.0
        base = self.factor
        if base == 0:
            # An axis of size 2 has the frequency 1 alone, whatever its base.
            base = max(1.0, self.growth[axis - 1]) ** (dim / (dim - 2)) if dim > 2 else 1.0
        level = min(max(sigma, 0.0), 1.0)
        return base ** (2 * level**2)


NOT_STRETCHED = RopeStretch()
"""The model's own base."""


def ntk_factor(image_tokens: int, wanted: float = 0.0, family: Family = FLUX1) -> float:
    """The factor on the base of all rotary axes.

    Args:
        image_tokens: N of the whole frame.
        wanted: 0 decides by the frame (FLUX.1: 1 up to 8192 image tokens, 10 above); any other value is taken as is.
        family: Whose recipe it is.
    """
    if wanted:
        return float(wanted)
    return family.hires_ntk if family.is_hires(image_tokens) else 1.0


def ntk_theta(theta: float, factor: float) -> float:
    """The rotary base under an NTK factor: ``theta * factor`` (FLUX: theta 10000)."""
    return theta * factor


def cos_sin(ids: Tensor, frequencies: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles by which tokens are turned.

    Args:
        ids: (..., tokens, axes) positions.
        frequencies: (d / 2,) float64 for each axis, as :meth:`RopeStretch.frequencies` gives them.

    Returns:
        Each (..., tokens, D / 2) float32 on the device of ``ids``, axis after axis, D the sum of all d. Computed in
        float64, on the CPU unless ``ids`` are on a CUDA device: others may lack float64.
    """
    device = ids.device if ids.device.type in ("cpu", "cuda") else torch.device("cpu")
    positions = ids.to(device, torch.float32)
    # Axis by axis, since float64 for all of them at once would take twice the result.
    turned = (positions[..., axis, None] * each.to(device) for axis, each in enumerate(frequencies))
    pairs = [(angle.cos().float(), angle.sin().float()) for angle in turned]
    cos, sin = (torch.cat(parts, dim=-1).to(ids.device) for parts in zip(*pairs, strict=True))
    return cos, sin


def rotations(ids: Tensor, frequencies: Sequence[Tensor]) -> Tensor:
    """What FLUX's position embedder in the host gives, for frequencies of any kind.

    Args:
        ids: (B, tokens, axes) positions.
        frequencies: (d / 2,) float64 for each axis.

    Returns:
        (B, 1, tokens, D / 2, 2, 2) float32 rotation matrices on the device of ``ids``.
    """
    cos, sin = cos_sin(ids, frequencies)
    return torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2)).unsqueeze(1)
