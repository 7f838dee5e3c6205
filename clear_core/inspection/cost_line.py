"""What windows save at a size, in one line for a person, and where they will not pay."""

from __future__ import annotations

from ..cost import clear_pairs, dense_pairs
from ..families import FLUX1
from ..layout import TOKEN_PIXELS, SequenceLayout, token_grid
from ..memory import FLUX_TEXT
from ..spec import ClearSpec
from .units import percent

USUAL_SIZES = {"1K": 1024, "2K": 2048, "4K": 4096}
"""Squares named where the size of the picture is not known."""

SMALL = 4608
"""Image tokens up to which, at about a megapixel, windows gained nothing (paper, table 1: 4.40 s of 4.45 s)."""

COSTLY = 0.5
"""Share of dense attention above which windows were slower than it (paper, table 1: radius 32 at 1K)."""


def layout_of(width: int, height: int) -> SequenceLayout:
    """The sequence that a picture of this many pixels makes, with a prompt of usual length."""
    return SequenceLayout(FLUX_TEXT, token_grid(height, width, TOKEN_PIXELS))


def share(layout: SequenceLayout, spec: ClearSpec, dense_part: float = 0.0) -> float:
    """Cost of the windows over that of dense attention: up to 1, above it only where all is seen and pooled as well.

    Args:
        layout: The sequence.
        spec: The windows.
        dense_part: Part of the blocks, 0 to 1, that attend without windows.
    """
    return dense_part + (1 - dense_part) * clear_pairs(layout, spec) / dense_pairs(layout)


def cost_line(
    spec: ClearSpec | None,
    size: tuple[int, int] | None,
    *,
    has_weights: bool = True,
    min_tokens: int = 0,
    dense_part: float = 0.0,
    acts: tuple[float, float] = (0.0, 1.0),
) -> str:
    """One line: tokens, the share of dense attention's cost, and a word of warning where one is due.

    Args:
        spec: The windows; None for a model that attends densely.
        size: (width, height) in pixels, or None where it is not known: then 1K, 2K and 4K are named.
        has_weights: Whether weights distilled for windows are loaded.
        min_tokens: Below this many image tokens the model attends densely.
        dense_part: Part of the blocks, 0 to 1, that always do.
        acts: Shares of the sampling, 0 to 1, between which they have windows at all; the costs are those of such a step.
    """
    if size is None:
        if spec is None:
            return "dense attention, no windows"
        shares = (
            f"{percent(share(layout_of(side, side), spec, dense_part))} at {name}" for name, side in USUAL_SIZES.items()
        )
        return joined(
            f"{', '.join(shares)} of dense attention", "does not pay at 1K", *remarks(spec, has_weights, acts)
        )
    layout = layout_of(*size)
    start = f"{size[0]} x {size[1]}: {layout.image:,} tokens"
    if spec is None:
        slow = "slow here: put CLEAR Attention before it" if FLUX1.is_hires(layout.image) else ""
        return joined(f"{start}, dense attention, no windows", slow)
    if layout.image < min_tokens:
        return f"{start}, dense attention: fewer than min_tokens"
    part = share(layout, spec, dense_part)
    pays = ""
    if part > COSTLY:
        pays = "slower than dense here"
    elif layout.image <= SMALL:
        pays = "does not pay here"
    return joined(f"{start}, {percent(part)} of dense attention", pays, *remarks(spec, has_weights, acts))


def remarks(spec: ClearSpec, has_weights: bool, acts: tuple[float, float]) -> tuple[str, ...]:
    """What holds at any size."""
    start, end = acts
    return (
        f"only from {percent(start)} to {percent(end)} of the sampling" if acts != (0, 1) else "",
        "" if has_weights else "no weights: picture suffers",
        "pooled overview: quadratic" if spec.pools else "",
    )


def joined(*parts: str) -> str:
    """The parts that say something, as one line."""
    return " · ".join(filter(None, parts))
