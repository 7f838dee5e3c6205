"""Peak memory by resolution, card and weights, calculated: ``python -m benchmarks.memory_table`` prints it."""

from __future__ import annotations

from clear_core.call_memory import CallMemory, MemoryPlan
from clear_core.layout import TOKEN_PIXELS, token_grid
from clear_core.memory import GIB, RUNTIME_BYTES
from clear_core.sdedit import TileLayout, choose_tiles

CARDS = (8, 12, 16, 24, 48)
SIDES = (2048, 4096, 8192)
WEIGHTS = {"bf16": 23.8e9, "fp8": 11.9e9, "GGUF Q4": 6.8e9}
"""Bytes of FLUX.1's published weights by format."""


def whole_frame_rows() -> list[str]:
    """Memory of one call over the whole frame, in bf16."""
    call, whole = CallMemory(), CallMemory(chunk=None, keeps_input=True)
    rows = ["| picture | tokens | beside the weights, GiB | the same without chunks |", "| --- | --- | --- | --- |"]
    for side in SIDES:
        tokens = (side // TOKEN_PIXELS) ** 2
        chunked, plain = call.peak_bytes(tokens) / GIB, whole.peak_bytes(tokens) / GIB
        rows.append(f"| {side} x {side} | {tokens} | {chunked:.1f} | {plain:.1f} |")
    return rows


def card_rows() -> list[str]:
    """Tiles of the automatic rule, and their peak."""
    head = [f"{gigabytes} GB" for gigabytes in CARDS]
    rows = [f"| picture | weights | {' | '.join(head)} |", f"| --- | --- |{' --- |' * len(CARDS)}"]
    for side in SIDES:
        for name, weights in WEIGHTS.items():
            cells = [card_cell(side, gigabytes * GIB, int(weights)) for gigabytes in CARDS]
            rows.append(f"| {side} x {side} | {name} | {' | '.join(cells)} |")
    return rows


def card_cell(side: int, total: int, weights: int) -> str:
    """Tile and peak on one card; an asterisk if the host has to keep a part of the weights in main memory."""
    plan = MemoryPlan(weights=weights)
    layout = choose_tiles(token_grid(side, side, TOKEN_PIXELS), memory=plan, total=total)
    resident = min(weights, total // 2)
    peak = resident + RUNTIME_BYTES + plan.peak_bytes(layout.tile[0] * layout.tile[1])
    return f"{tile_text(layout)}, {peak / GIB:.1f}{'*' if resident < weights else ''}"


def tile_text(layout: TileLayout) -> str:
    """Number and sides in px of the tiles."""
    if layout.is_whole:
        return "whole"
    return f"{len(layout.tiles)} of {layout.tile[1] * TOKEN_PIXELS} x {layout.tile[0] * TOKEN_PIXELS}"


if __name__ == "__main__":
    print("\n".join([*whole_frame_rows(), "", *card_rows()]))
