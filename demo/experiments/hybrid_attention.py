"""Attention of the tiny FLUX by a plan: which steps and blocks attend densely, and what the others' windows see."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch.nn.functional as F
from torch import Tensor

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.cost import clear_pairs, dense_pairs
from clear_core.sdedit.schedule import FLUX_SHIFT

from ..tiny_flux.model import CONFIG
from .block_processor import BlockProcessor

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

Kind = Literal["dense", "plain", "pooled", "overview"]
BLOCKS = CONFIG["num_layers"] + CONFIG["num_single_layers"]


@dataclass(frozen=True)
class Plan:
    """How a run attends.

    Attributes:
        kind: What the windowed blocks do: attend densely after all, see a window, see pooled keys too (each cell's
            mean, as untrained weights do it), or see them as an overview of what is outside (``ClearSpec.overview``).
        radius: Of the windows, in tokens.
        down_factor: Side in tokens of a pooled cell; 1 without pooling.
        start: Share of the whole schedule before which every block attends densely.
        dense_blocks: Indices of blocks that always attend densely, the double block first.
        distilled: Whether the weights are those distilled for the window.
    """

    kind: Kind
    radius: int = 1
    down_factor: int = 1
    start: float = 0.0
    dense_blocks: tuple[int, ...] = ()
    distilled: bool = False

    @property
    def spec(self) -> ClearSpec:
        return ClearSpec(self.radius, self.down_factor, self.kind == "overview")

    @property
    def windows(self) -> str:
        """What a windowed block sees, in words."""
        if self.kind == "dense":
            return "dense"
        cells = "" if self.kind == "plain" else f", {self.kind} {self.down_factor}"
        return f"radius {self.radius}{cells}" + (", distilled" if self.distilled else "")

    @property
    def name(self) -> str:
        """A row's name."""
        parts = [self.windows]
        if self.start:
            parts.append(f"dense before {self.start:g}")
        if self.dense_blocks:
            parts.append("dense blocks " + " ".join(map(str, self.dense_blocks)))
        return ", ".join(parts)

    def is_dense_at(self, sigma: float) -> bool:
        """Whether every block attends densely at a noise level of the schedule shifted by 3."""
        return self.kind == "dense" or progress_at(sigma) < self.start - 1e-6

    def share(self, layout: SequenceLayout, sigmas: Sequence[float]) -> float:
        """Counted query-key pairs of a run over dense attention's.

        Args:
            layout: The sequence of a call.
            sigmas: Noise levels at which the model is called.
        """
        windowed = 0.0 if self.kind == "dense" else (BLOCKS - len(self.dense_blocks)) / BLOCKS
        each = clear_pairs(layout, self.spec) / dense_pairs(layout)
        parts = [1.0 if self.is_dense_at(sigma) else 1 - windowed * (1 - each) for sigma in sigmas]
        return sum(parts) / len(parts)


def progress_at(sigma: float, shift: float = FLUX_SHIFT) -> float:
    """Share of the whole schedule that lies before a noise level, 0 to 1."""
    return 1 - sigma / (shift - (shift - 1) * sigma)


def attend(plan: Plan, grid: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None) -> Tensor:
    """Attention of one windowed block, (B, heads, L, D) each, text first."""
    if plan.kind == "dense":
        return F.scaled_dot_product_attention(q, k, v)
    out = clear_attention(q, k, v, grid=grid, spec=plan.spec, spatial_weight=weight)
    assert isinstance(out, Tensor)
    return out


class PlanProcessor(BlockProcessor):
    """Attention of one block by the plan of the moment.

    Attributes:
        plan, grid: Of the call.
    """

    def __init__(self, plan: Plan, weight: Tensor | None = None) -> None:
        super().__init__()
        self.plan, self.weight = plan, weight
        self.grid: tuple[int, int] = (0, 0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(self.plan, self.grid, q, k, v, self.weight)


@contextmanager
def planned(
    model: FluxTransformer2DModel, plan: Plan, weights: Sequence[Tensor | None] = ()
) -> Generator[Callable[[tuple[int, int], float], None]]:
    """The model's blocks under a plan.

    Args:
        weights: Pooling weights, one for each block; none pool by the mean.

    Yields:
        A function of (grid, sigma) that is to be called before each call of the model.
    """
    blocks: list[Any] = [*model.transformer_blocks, *model.single_transformer_blocks]
    stock = [block.attn.processor for block in blocks]
    dense = replace(plan, kind="dense")
    ours = [PlanProcessor(plan, weight) for weight in (weights or [None] * BLOCKS)]

    def at(grid: tuple[int, int], sigma: float) -> None:
        everywhere = plan.is_dense_at(sigma)
        for index, processor in enumerate(ours):
            processor.grid = grid
            processor.plan = dense if everywhere or index in plan.dense_blocks else plan

    for block, processor in zip(blocks, ours, strict=True):
        block.attn.set_processor(processor)
    try:
        yield at
    finally:
        for block, processor in zip(blocks, stock, strict=True):
            block.attn.set_processor(processor)
