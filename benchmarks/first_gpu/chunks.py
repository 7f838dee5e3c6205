"""4. What gathered attention is built with: chunk budgets, query tiles, masks, and cuDNN's attention within it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from clear_core import ClearSpec, SequenceLayout, clear_attention, cost
from clear_core.attention.budget import default_chunk_bytes
from clear_core.attention.tiling.classes import query_tile

from .bench import Bench, Measurement
from .compare import Attention, Contender, compare
from .inputs import keys_per_query
from .scale import MIB, Scale

SECTION = "Gathered attention"
SIZE = "4K"
CHUNKS = "chunk budgets"
USUAL, WITHOUT_CUDNN = "as it is", "without cuDNN"


def measurements(scale: Scale) -> list[Measurement]:
    middle, _, wide = scale.radii
    return [
        Measurement(f"{SIZE}, {CHUNKS}", SECTION, 8, partial(chunk_budgets, ClearSpec(middle))),
        Measurement(f"{SIZE}, masks and cuDNN", SECTION, 8, partial(masks, ClearSpec(middle))),
        *(
            Measurement(f"{SIZE}, query tiles, radius {radius}", SECTION, 6, partial(tiles, ClearSpec(radius)))
            for radius in (middle, wide)
        ),
    ]


def _contender(
    name: str, attention: Attention, layout: SequenceLayout, spec: ClearSpec, exact: bool = True
) -> Contender:
    pairs = cost.clear_pairs(layout, spec)
    return Contender(name, attention, keys_per_query(layout, spec), pairs, spec if exact else None)


def _gather(layout: SequenceLayout, spec: ClearSpec, **options: Any) -> Attention:
    return partial(clear_attention, grid=layout.grid, spec=spec, backend="gather", **options)


def bytes_text(number: int) -> str:
    """A number of bytes in MiB, or in KiB if there are less."""
    return f"{number / MIB:.4g} MiB" if number >= MIB else f"{number / 2**10:.4g} KiB"


def chunk_budgets(spec: ClearSpec, bench: Bench) -> dict[str, Any]:
    """``budgets``: bytes by the run's name; ``default_bytes``: the budget without one; ``constant``: its name."""
    layout = bench.scale.layout(SIZE)
    budgets = {f"gather, {bytes_text(one)}": one for one in bench.scale.chunk_bytes}
    contenders = [
        _contender(name, _gather(layout, spec, chunk_bytes=one), layout, spec) for name, one in budgets.items()
    ]
    found = compare(contenders, layout, bench)
    constant = "_ON_CPU" if bench.device.type == "cpu" else "_ELSEWHERE"
    return {
        "budgets": budgets,
        "default_bytes": default_chunk_bytes(bench.device, 2**40),
        "constant": constant,
        **found,
    }


def masks(spec: ClearSpec, bench: Bench) -> dict[str, Any]:
    """A call without a mask, with one of the text for all heads, with one for each head, and without cuDNN.

    cuDNN plans anew for every shape: ``first_ms`` beside ``median_ms`` shows what that takes.
    """
    scale, layout = bench.scale, bench.scale.layout(SIZE)

    def seen(heads: int) -> Tensor:
        bias = torch.ones(1, heads, 1, layout.text, dtype=torch.bool, device=bench.device)
        bias[..., layout.text // 2 :] = False
        return bias

    def without_cudnn(q: Tensor, k: Tensor, v: Tensor) -> Any:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            return _gather(layout, spec)(q, k, v)

    contenders = [
        _contender(f"gather, {USUAL}", _gather(layout, spec), layout, spec),
        _contender(f"gather, {WITHOUT_CUDNN}", without_cudnn, layout, spec),
        *(
            _contender(f"gather, mask of {heads} head(s)", _gather(layout, spec, bias=seen(heads)), layout, spec, False)
            for heads in (1, scale.heads)
        ),
    ]
    found = compare(contenders, layout, bench)
    if bench.device.type == "cuda":
        # What the allocator holds in pieces that nothing fits into.
        found["fragments_bytes"] = torch.cuda.memory_stats(bench.device)["inactive_split_bytes.all.peak"]
    return found


def tiles(spec: ClearSpec, bench: Bench) -> dict[str, Any]:
    """``tiles``: (height, width) in tokens by the run's name; ``default_tile``: the one that is taken now."""
    layout = bench.scale.layout(SIZE)
    shapes = {f"gather, tiles of {height} x {width}": (height, width) for height, width in bench.scale.query_tiles}
    contenders = [
        _contender(name, partial(_with_tile, tile, _gather(layout, spec)), layout, spec)
        for name, tile in shapes.items()
    ]
    default = query_tile(bench.device, spec.radius)
    found = compare(contenders, layout, bench)
    return {"radius": spec.radius, "tiles": shapes, "default_tile": default, **found}


def _with_tile(tile: tuple[int, int], attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> Any:
    with tiles_of(tile):
        return attention(q, k, v)


@contextmanager
def tiles_of(tile: tuple[int, int]) -> Generator[None, None, None]:
    """Has gathered attention take query tiles of about this (height, width) in tokens.

    There is no such option: the rule is put aside in every module that has it.
    """

    def instead(*_: Any) -> tuple[int, int]:
        return tile

    holders: list[tuple[Any, str]] = [
        (module, name)
        for place, module in list(sys.modules.items())
        if place.startswith("clear_core.attention")
        for name, value in list(vars(module).items())
        if value is query_tile
    ]
    rule: Callable[..., Any] = query_tile
    try:
        for module, name in holders:
            setattr(module, name, instead)
        yield
    finally:
        for module, name in holders:
            setattr(module, name, rule)
