"""How much is measured: on a card at FLUX.1's sizes, and small, to rehearse the command on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from clear_core import ClearSpec, SequenceLayout

from ..flux import DOWN_FACTOR, GRIDS, TEXT

MIB = 2**20


@dataclass(frozen=True)
class Case:
    """A call that every backend is compared with the oracle in.

    Attributes:
        layout: Text, grid and reference tokens.
        spec: Window.
        batch: Items.
        strided: Whether q, k and v lie in memory as in the model; contiguous otherwise.
        masked: Whether some text tokens are masked; asked only of backends that take a mask themselves.
    """

    layout: SequenceLayout
    spec: ClearSpec
    batch: int = 1
    strided: bool = True
    masked: bool = False

    def __str__(self) -> str:
        height, width = self.layout.grid
        parts = [f"{height} x {width}, text {self.layout.text}, {self.spec}"]
        parts += [f"{self.layout.reference} reference tokens"] * bool(self.layout.reference)
        parts += [f"batch {self.batch}"] * (self.batch > 1)
        parts += ["contiguous"] * (not self.strided) + ["masked"] * self.masked
        return ", ".join(parts)


@dataclass(frozen=True)
class Scale:
    """Sizes of one kind of run.

    Attributes:
        grids: (height, width) in tokens by the name of a size; the names are FLUX.1's in a rehearsal as well.
        text: Text tokens.
        heads, head_dim, dtype: Of the layers.
        radii: The window radius that matters most first, the narrow one, the wide one, in tokens.
        down_factor: Side of a pooled cell in tokens.
        rounds: Rounds of each timing.
        exact: Calls that are compared with the oracle.
        exact_dtypes: Number types of these calls.
        compiled_dtypes: Those of them in which kernels are compiled; each takes a CPU ten seconds.
        chunk_bytes: Chunk budgets of gathered attention to compare.
        query_tiles: (height, width) in tokens of gathered attention's query tiles to compare.
        peak_grids: Grids whose peak memory is compared with the forecast.
        neighbourhood, stride: Side and stride in tokens of the window that NATTEN published figures for.
        empty_caches: Whether the first use of a kernel is measured with empty caches too: compiling takes a CPU half a
            minute.
        row_major: Sizes at which the published order is compiled and measured, for the middle radius.
        row_major_again: Sizes and radii of the published order that are measured if time is left.
    """

    grids: dict[str, tuple[int, int]]
    text: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    radii: tuple[int, int, int]
    down_factor: int
    rounds: int
    exact: tuple[Case, ...]
    exact_dtypes: tuple[torch.dtype, ...]
    compiled_dtypes: tuple[torch.dtype, ...]
    chunk_bytes: tuple[int, ...]
    query_tiles: tuple[tuple[int, int], ...]
    peak_grids: tuple[tuple[int, int], ...]
    neighbourhood: int
    stride: int
    empty_caches: bool
    row_major: tuple[str, ...]
    row_major_again: tuple[tuple[str, int], ...]

    def layout(self, size: str) -> SequenceLayout:
        """Text and image tokens of a size by its name."""
        return SequenceLayout(self.text, self.grids[size])


FULL = Scale(
    grids=GRIDS,
    text=TEXT,
    heads=24,
    head_dim=128,
    dtype=torch.bfloat16,
    radii=(16, 8, 32),
    down_factor=DOWN_FACTOR,
    rounds=5,
    exact=(
        Case(SequenceLayout(512, (64, 64)), ClearSpec(16)),
        Case(SequenceLayout(512, (68, 120)), ClearSpec(16)),
        Case(SequenceLayout(77, (37, 53), 100), ClearSpec(8, 4)),
        Case(SequenceLayout(256, (90, 41)), ClearSpec(32), batch=2, strided=False),
        Case(SequenceLayout(0, (19, 130), 30), ClearSpec(5, 3), batch=2),
        Case(SequenceLayout(100, (40, 33)), ClearSpec(8), masked=True),
    ),
    exact_dtypes=(torch.bfloat16, torch.float16, torch.float32),
    compiled_dtypes=(torch.bfloat16, torch.float16),
    chunk_bytes=tuple(megabytes * MIB for megabytes in (32, 64, 128, 256, 512, 1024)),
    query_tiles=((16, 16), (16, 32), (32, 32), (32, 64)),
    peak_grids=((64, 64), (68, 120), (90, 160), (256, 256)),
    neighbourhood=80,
    stride=16,
    empty_caches=True,
    row_major=("4K", "2K"),
    row_major_again=(("4K", 8), ("4K", 32), ("1K", 16), ("2K", 8), ("2K", 32), ("8K", 16)),
)

SMALL = Scale(
    grids={"1K": (9, 10), "2K": (12, 11), "4K": (14, 18), "8K": (20, 19)},
    text=20,
    heads=2,
    head_dim=16,
    dtype=torch.float16,
    radii=(4, 2, 6),
    down_factor=2,
    rounds=2,
    exact=(
        Case(SequenceLayout(20, (12, 12)), ClearSpec(4)),
        Case(SequenceLayout(7, (13, 9), 5), ClearSpec(3, 2)),
        Case(SequenceLayout(0, (9, 17)), ClearSpec(5), batch=2, strided=False),
        Case(SequenceLayout(10, (8, 11)), ClearSpec(4), masked=True),
    ),
    exact_dtypes=(torch.bfloat16, torch.float16, torch.float32),
    compiled_dtypes=(torch.float16,),
    chunk_bytes=(2**16, 2**18, 2**20),
    query_tiles=((4, 4), (8, 8), (16, 16)),
    peak_grids=((9, 10), (13, 11)),
    neighbourhood=6,
    stride=2,
    empty_caches=False,
    row_major=("2K",),
    row_major_again=(),
)
