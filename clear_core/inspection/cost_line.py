"""One line for a user: what windows save at a size, and a warning if they will not pay."""

from __future__ import annotations

from ..effective import Effective
from ..families import ModelShape
from ..family import HYBRID, TRAINING_FREE
from ..layout import SequenceLayout, token_grid
from ..settings import ClearSettings
from .units import percent

USUAL_SIZES = {"1K": 1024, "2K": 2048, "4K": 4096}
"""Squares for a picture of unknown size."""

SMALL = 4608
"""Image tokens up to which, at about a megapixel, windows gained nothing (paper, table 1: 4.40 s of 4.45 s)."""

COSTLY = 0.5
"""Share of dense attention above which windows were slower than it (paper, table 1: radius 32 at 1K)."""

Size = tuple[int, int]
"""(width, height) in pixels."""


def layout_of(shape: ModelShape, width: int, height: int) -> SequenceLayout:
    """The sequence of a picture of this many pixels, with a prompt of usual length."""
    return SequenceLayout(shape.family.text_tokens, token_grid(height, width, shape.family.token_pixels))


def cost_line(settings: ClearSettings | None, shape: ModelShape, size: Size | None, *, has_weights: bool = True) -> str:
    """Tokens, the share of dense attention's cost, and a short warning if one is due.

    Args:
        settings: None for a model without CLEAR.
        shape: The model.
        size: None if it is not known: the line then names 1K, 2K and 4K.
        has_weights: Whether weights distilled for windows are loaded.

    Raises:
        ValueError: ``settings`` names blocks that the model lacks.
    """
    if size is None:
        return unknown_size_line(settings, shape, has_weights)
    effective = Effective.of(settings, shape, layout_of(shape, *size))
    start = f"{size[0]} x {size[1]}: {effective.image_tokens:,} tokens"
    if settings is None:
        slow = "slow here: put CLEAR Attention before it" if effective.is_hires else ""
        return joined(f"{start}, dense attention, no windows", slow)
    if effective.inactive:
        return f"{start}, dense attention: {effective.inactive.value}"
    pays = "slower than dense here" if is_slower(effective) else ""
    if gains_nothing(effective):
        pays = "does not pay here"
    share = f"{percent(effective.attention_share)} of dense attention"
    return joined(f"{start}, {share}", pays, *remarks(effective, has_weights))


def unknown_size_line(settings: ClearSettings | None, shape: ModelShape, has_weights: bool) -> str:
    """The line for a picture of unknown size."""
    if settings is None:
        return "dense attention, no windows"
    sizes = {name: Effective.of(settings, shape, layout_of(shape, side, side)) for name, side in USUAL_SIZES.items()}
    active = {name: effective for name, effective in sizes.items() if effective.active}
    if not active:
        reasons = {effective.inactive.value for effective in sizes.values() if effective.inactive}
        return f"dense attention: {', or '.join(sorted(reasons))}"
    shares = ", ".join(f"{percent(effective.attention_share)} at {name}" for name, effective in active.items())
    dense = " and ".join(name for name in sizes if name not in active)
    slower = " and ".join(name for name, effective in active.items() if is_slower(effective))
    useless = " and ".join(name for name, effective in active.items() if gains_nothing(effective))
    return joined(
        f"{shares} of dense attention",
        f"dense at {dense}" if dense else "",
        f"slower than dense at {slower}" if slower else "",
        f"does not pay at {useless}" if useless else "",
        *remarks(next(iter(active.values())), has_weights),
    )


def is_slower(effective: Effective) -> bool:
    """Whether windows are slower than dense attention."""
    return effective.window_share > COSTLY


def gains_nothing(effective: Effective) -> bool:
    """Whether windows cost about as much as dense attention."""
    return effective.image_tokens <= SMALL and not is_slower(effective)


def remarks(effective: Effective, has_weights: bool) -> tuple[str, ...]:
    """Remarks that hold at any size."""
    start, end = effective.active_range
    return (
        f"only from {percent(start)} to {percent(end)} of the sampling" if (start, end) != (0, 1) else "",
        "" if has_weights or effective.spec.overview else f"{TRAINING_FREE}: picture suffers",
        f"{HYBRID}, quadratic" if effective.spec.overview else "",
        "pooled overview: quadratic" if effective.spec.pools and not effective.spec.overview else "",
    )


def joined(*parts: str) -> str:
    """The parts that are not empty, as one line."""
    return " · ".join(filter(None, parts))
