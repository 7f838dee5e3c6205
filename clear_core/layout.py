"""How one FLUX sequence is laid out: text, then the image grid, then reference tokens."""

from __future__ import annotations

from dataclasses import dataclass

from .families import FLUX1
from .wording import quoted

TOKEN_PIXELS = FLUX1.token_pixels
"""Side of one token in pixels, the same in every family so far."""

PATCH = FLUX1.token_cells
"""Side of one token in latent cells; FLUX.2's is another."""


@dataclass(frozen=True)
class SequenceLayout:
    """Where text, image and reference tokens lie in a sequence ``[text | image | reference]``.

    Attributes:
        text: Number of text tokens T, 0 or more.
        grid: (h, w) of the image in tokens; image tokens are row-major.
        reference: Number of reference tokens (FLUX.1 Kontext), 0 or more.
    """

    text: int
    grid: tuple[int, int]
    reference: int = 0

    @classmethod
    def of(cls, length: int, grid: tuple[int, int], reference: int = 0) -> SequenceLayout:
        """The layout of a sequence of ``length`` tokens.

        Raises:
            ValueError: The grid is not two positive integers, or the parts do not add up to ``length``.
        """
        try:
            height, width = grid
        except (TypeError, ValueError):
            raise ValueError(f"grid is {quoted(grid)}; expected (height, width) in tokens.") from None
        checks: list[tuple[str, object, int]] = [
            ("grid height", height, 1),
            ("grid width", width, 1),
            ("reference_tokens", reference, 0),
        ]
        for name, value, least in checks:
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} is {quoted(value)}; expected an integer of at least {least}.")
        text = length - height * width - reference
        if text < 0:
            raise ValueError(
                f"the sequence has {length} tokens, but a grid of {height} x {width} and {reference} reference "
                f"tokens need at least {height * width + reference}; check grid and reference_tokens."
            )
        return cls(text, (height, width), reference)

    @property
    def image(self) -> int:
        """Number of image tokens N = h * w."""
        return self.grid[0] * self.grid[1]

    @property
    def length(self) -> int:
        """Number of tokens of the whole sequence."""
        return self.text + self.image + self.reference

    @property
    def image_slice(self) -> slice:
        return slice(self.text, self.text + self.image)


def token_grid(latent_height: int, latent_width: int, patch_size: int = PATCH) -> tuple[int, int]:
    """(h, w) in tokens of a latent, or of an image with ``patch_size`` in pixels; the model pads a side that does not
    divide."""
    return -(-latent_height // patch_size), -(-latent_width // patch_size)
