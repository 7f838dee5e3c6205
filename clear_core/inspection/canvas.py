"""What every drawing shares: the palette, the typeface and small primitives (Pillow is imported where it is used)."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

Color = tuple[int, int, int]

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in px."""

PAPER: Color = (252, 252, 250)
INK: Color = (33, 37, 46)
MUTED: Color = (104, 111, 124)
QUERY: Color = (232, 93, 36)
WINDOW: Color = (92, 138, 232)
CIRCLE: Color = (34, 66, 148)
UNSEEN: Color = (226, 230, 236)
SUMMARISED: Color = (219, 238, 232)
POOLED: Color = (20, 138, 112)
POOLED_BORDER: Color = (141, 202, 187)
TEXT: Color = (150, 122, 204)
REFERENCE: Color = (214, 170, 60)
DENSE: Color = (128, 134, 145)
GRID_LINE: Color = (229, 232, 237)

# Everything is drawn at twice its size and scaled down once, which smooths circles and dots.
OVERSAMPLING = 2


def around(centre: tuple[float, float], reach: float) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a square, ``reach`` px to each side of ``centre`` = (x, y)."""
    x, y = centre
    return x - reach, y - reach, x + reach, y + reach


def font(size: float) -> Font:
    """Pillow's built-in typeface, so that no font has to be installed; ``size`` in px."""
    from PIL import ImageFont

    return ImageFont.load_default(max(8.0, size))


def legible(text: str) -> str:
    """The text in letters that :func:`font` has: an accent is left out, a letter without a plain form becomes "?"."""
    return "".join(
        letter
        if letter.isascii() or letter == "\u00b7"
        else unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode() or "?"
        for letter in text
    )
