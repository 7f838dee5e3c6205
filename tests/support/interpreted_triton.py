"""Runs the Triton kernel in Triton's interpreter, beside the dense oracle.

Meant for a process of its own, started with TRITON_INTERPRET=1: the variable is read when Triton is imported.
"""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.attention import choose, first_use
from clear_core.attention.backends.triton import backend as triton_backend
from clear_core.attention.backends.triton import launch as triton_launch
from clear_core.attention.backends.triton.launch import BlockShape, KernelTensors, launch, launch_pooling
from clear_core.attention.call import CallKind
from clear_core.attention.pool import mean_weight, pool_tokens
from clear_core.attention.self_test import run_self_test
from clear_core.attention.tiling.plan import tile_plan

KIND = CallKind(torch.device("cpu"), torch.float32, 16, (1, 1), ClearSpec(1), return_lse=True)
BLOCKS = ((128, 64), (128, 64), (64, 64), (128, 32), (64, 32), (64, 16))


@dataclass(frozen=True)
class Case:
    """One random call, small because the interpreter is slow."""

    seed: int
    grid: tuple[int, int]
    text: int
    reference: int
    radius: int
    down_factor: int
    batch: int
    heads: int
    head_dim: int
    weight: str
    strided: bool
    scale: float | None
    chunk_bytes: int | None
    blocks: tuple[int, int]
    integers: bool
    rows: range | None = None
    overview: bool = False
    stages: int = 2

    def __str__(self) -> str:
        parts = [
            f"{self.seed}",
            f"{self.grid[0]}x{self.grid[1]}",
            f"T{self.text}",
            f"R{self.reference}",
            f"r{self.radius}",
            f"d{self.down_factor}-{'overview' if self.overview else self.weight}",
            f"b{self.batch}x{self.heads}x{self.head_dim}",
            f"scale{self.scale}",
            f"blocks{self.blocks[0]}x{self.blocks[1]}",
        ]
        return "-".join(
            parts
            + ["strided"] * self.strided
            + ["chunked"] * (self.chunk_bytes is not None)
            + ["integers"] * self.integers
            + ([] if self.rows is None else [f"rows{self.rows.start}to{self.rows.stop}"])
        )

    @classmethod
    def draw(cls, seed: int) -> Case:
        draw = random.Random(seed)
        longest = draw.choice([1, 8, 18, 18, 27])
        grid = draw.randint(1, longest), draw.randint(1, longest)
        batch = draw.choice([1, 1, 2])
        return cls(
            seed=seed,
            grid=grid,
            text=draw.choice([0, 0, 1, 7, 64, 77]),
            reference=draw.choice([0, 0, 0, 1, 30]),
            radius=draw.choice([1, 2, 3, 5, 8, 8, 13, 16, 32, 80]),
            down_factor=draw.choice([1, 1, 2, 3, 4]),
            batch=batch,
            heads=1 if batch == 2 or grid[0] * grid[1] > 200 else draw.choice([1, 2, 3]),
            head_dim=draw.choice([16, 17, 32, 50, 64, 72, 128]),
            weight=draw.choice(["mean", "learned"]),
            strided=draw.random() < 0.5,
            scale=draw.choice([None, None, None, None, 0.11, -0.2, 0.0]),
            chunk_bytes=draw.choice([None, 1, 100_000]),
            blocks=draw.choice(BLOCKS),
            integers=draw.random() < 0.2,
        )

    @classmethod
    def draw_rows(cls, seed: int) -> Case:
        """A call for some of the image's rows; none in one of ten."""
        case, draw = cls.draw(seed), random.Random(-seed)
        height = draw.randint(1, 40)
        first = draw.randint(0, height - 1)
        stop = first if draw.random() < 0.1 else draw.randint(first + 1, min(first + 20, height))
        return replace(case, grid=(height, draw.randint(1, 20)), heads=1, rows=range(first, stop))

    @classmethod
    def draw_overview(cls, seed: int) -> Case:
        """A call with an overview: every second one of some of the image's rows."""
        case = cls.draw_rows(seed) if seed % 2 else cls.draw(seed)
        return replace(case, weight="mean", overview=True, stages=1 + seed // 2 % 2)

    def tensors(self, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """q, k, v: contiguous, or views as ComfyUI's blocks hand them over (V inside a wider tensor)."""
        generator = torch.Generator().manual_seed(self.seed)
        length = self.text + self.grid[0] * self.grid[1] + self.reference
        wide = torch.randn(self.batch, length, 5, self.heads, self.head_dim, generator=generator).to(dtype)
        q, k, v = wide[:, :, :3].permute(2, 0, 3, 1, 4)
        return (q, k, v) if self.strided else (q.contiguous(), k.contiguous(), v.contiguous())

    def spec(self) -> ClearSpec:
        return ClearSpec(self.radius, self.down_factor, self.overview)

    def options(self) -> dict[str, object]:
        d = self.down_factor
        weight = None
        if self.weight == "learned":
            weight = mean_weight(d) * (0.5 + torch.rand(d, d, generator=torch.Generator().manual_seed(self.seed)))
        return {
            "grid": self.grid,
            "spec": self.spec(),
            "spatial_weight": weight,
            "scale": self.scale,
            "reference_tokens": self.reference,
            "return_lse": True,
        }


def prepare(folder: Path) -> None:
    """What is read before it was written is NaN, in this process; what it keeps for the next start is in ``folder``."""
    first_use.user_cache_folder = lambda: folder
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(3).isnan().all()
    # Of rows that lie in the padding, which are computed and never written.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton")


def errors(case: Case, dtype: torch.dtype) -> tuple[float, float]:
    """Largest difference of the output from the oracle's (of values above 1 relative to the largest), and of the
    log-sum-exp; both NaN-proof."""
    triton_backend.shapes_for = lambda *asked: (BlockShape(*case.blocks, 4, case.stages),)
    # Distances are integers where windows are too wide for float32; such grids would take hours here.
    triton_launch.FAR_RADIUS = 0 if case.integers else 2**11
    q, k, v = case.tensors(dtype)
    whole = q.float()
    positions = torch.arange(q.shape[2])
    if case.rows is not None:
        image = slice(case.text, case.text + case.grid[0] * case.grid[1])
        rows = positions[image].unflatten(0, case.grid)[case.rows.start : case.rows.stop].flatten()
        positions = torch.cat([positions[: image.start], rows, positions[image.stop :]])
        # As the caller would have it: these tokens alone, strided as before.
        q = q.transpose(1, 2)[:, positions].transpose(1, 2)
        q = q if case.strided else q.contiguous()
    options = case.options()
    found, lse = clear_attention(
        q, k, v, backend="triton", chunk_bytes=case.chunk_bytes, query_rows=case.rows, **options
    )
    assert found.dtype == dtype and lse.dtype == torch.float32
    expected, expected_lse = clear_attention(whole, k.float(), v.float(), backend="dense", **options)
    expected, expected_lse = expected[:, :, positions], expected_lse[:, :, positions]
    if not found.numel():
        return 0.0, 0.0
    difference = (found.float() - expected).abs().max() / expected.abs().max().clamp(min=1)
    return float(difference), float((lse - expected_lse).abs().max())


def pooling_errors(dtype: torch.dtype) -> list[float]:
    """Largest differences of the pooling kernel's results from the plain ones, of values of about 1."""
    found = []
    generator = torch.Generator().manual_seed(0)
    for grid, down, head_dim, strided in [
        ((12, 8), 4, 16, False),
        ((13, 9), 4, 64, True),
        ((3, 5), 8, 50, True),
        ((25, 23), 2, 32, False),
        ((7, 6), 3, 128, True),
    ]:
        wide = torch.randn(2, grid[0] * grid[1], 2, 3, head_dim, generator=generator).to(dtype)
        tokens = wide[:, :, 1].transpose(1, 2)
        tokens = tokens if strided else tokens.contiguous()
        noise = torch.rand(down, down, generator=generator) / down**2
        # What is left of a cut cell cancels all but for a little, so that its gain reaches the bound; or all cancels.
        bounded = noise.clone()
        bounded[0, 0], bounded[0, 1:], bounded[1:, 0] = 1.0, -1 / (2 * down - 2), -1 / (2 * down - 2)
        bounded[0, 0] += 1e-4
        for weight in (mean_weight(down), noise, bounded, noise - noise.mean(), torch.zeros(down, down)):
            expected = pool_tokens(tokens, grid, weight)
            pooled = torch.full_like(expected, float("nan"))
            launch_pooling(tokens, pooled, grid, weight)
            off = (pooled.float() - expected.float()).abs().max()
            found.append(float(off / expected.float().abs().max().clamp(min=1)))
    return found


def said() -> list[str]:
    """What was said about backends that were replaced by another."""
    return sorted(choose._logged)


def refusal(dtype: torch.dtype) -> str | None:
    return choose.unavailable_reason("triton", torch.device("cpu"), dtype, 16)


def refusal_of_another_window() -> str | None:
    """What the self-test says of a kernel that sees a token too far."""
    sizes = triton_launch.kernel_sizes
    triton_launch.kernel_sizes = lambda plan, heads: {**sizes(plan, heads), "inside": (plan.spec.radius + 1) ** 2}
    try:
        return run_self_test(choose.TRITON, KIND)
    finally:
        triton_launch.kernel_sizes = sizes


def refusal_of_other_weights(part: str | None) -> str | None:
    """What the self-test says of a kernel that weighs the pooled keys of an overview a quarter more, by one of its
    lists."""
    lists = triton_launch.overview_lists
    # Blocks as on cards.
    triton_backend.shapes_for = lambda *asked: (BlockShape(64, 64, 4, 1),)
    if part is not None:
        triton_launch.overview_lists = lambda plan: lists(plan)._replace(**{part: getattr(lists(plan), part) + 0.32})
    try:
        return run_self_test(choose.TRITON, KIND._replace(spec=ClearSpec(8, 4, overview=True)))
    finally:
        triton_launch.overview_lists = lists


def far_apart(folder: Path, token_stride: int, head_stride: int) -> tuple[float, int]:
    """Tokens and heads so far apart that their offsets need more than 32 bits, in files that are all but empty.

    Returns:
        Largest difference of the image rows from the oracle, and the offset of the last element of each tensor.
    """
    layout, spec, heads, head_dim = SequenceLayout(5, (9, 7), 0), ClearSpec(4), 2, 16
    last = (heads - 1) * head_stride + (layout.length - 1) * token_stride + head_dim - 1
    close = torch.randn(3, 1, heads, layout.length, head_dim, generator=torch.Generator().manual_seed(0)).half()
    far = [
        torch.from_file(str(folder / name), shared=True, size=last + 1, dtype=torch.float16).as_strided(
            close[0].shape, (last + 1, head_stride, token_stride, 1)
        )
        for name in ("q", "k", "v", "out")
    ]
    for view, one in zip(far[:3], close, strict=True):
        view.copy_(one)
    q, k, v, out = far
    text, image = slice(0, layout.text), layout.image_slice
    tensors = KernelTensors(q, k, v, k[:, :, text], v[:, :, text], out, torch.empty(out.shape[:3]))
    launch(BlockShape(128, 64, 4, 1), tensors, tile_plan(layout, spec, torch.device("cpu")), 0.25)
    expected = clear_attention(*close.float(), grid=layout.grid, spec=spec, scale=0.25, backend="dense")
    return float((out[:, :, image].float() - expected[:, :, image]).abs().max()), last
