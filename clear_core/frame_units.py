"""How a model's frame is made: pixels to a latent cell, cells to a token, and the smallest square that sizes fit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FrameUnits:
    """The units of one model. Sizes, tiles, overlaps and paddings are whole units.

    Attributes:
        latent_pixels: Side of a latent cell in pixels: the VAE's factor, 1 for a model of pixels.
        token_cells: Side of a token in latent cells: the patch size.
        unit_tokens: Side of a unit in tokens. 1 for a transformer; a UNet halves the latent from level to level, and a
            unit is one place of its deepest level.
        has_frames: Whether a latent has an axis of time (B, C, T, h, w), as models of video have it; T is 1.
        most_units: Longest side in units of one call that nobody set; None if the model has no limit.
        may_be_longer: Whether a call may be longer than that if somebody sets it so.
    """

    latent_pixels: int
    token_cells: int
    unit_tokens: int = 1
    has_frames: bool = False
    most_units: int | None = None
    may_be_longer: bool = False

    @property
    def token_pixels(self) -> int:
        """Side of a token in pixels."""
        return self.latent_pixels * self.token_cells

    @property
    def cells(self) -> int:
        """Side of a unit in latent cells."""
        return self.token_cells * self.unit_tokens

    @property
    def pixels(self) -> int:
        """Side of a unit in pixels."""
        return self.latent_pixels * self.cells

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """(rows, columns) of units that cover a picture of so many pixels."""
        return -(-height // self.pixels), -(-width // self.pixels)

    def tokens(self, grid: tuple[int, int]) -> int:
        """Image tokens of so many (rows, columns) of units."""
        return grid[0] * grid[1] * self.unit_tokens**2

    def token_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of tokens in so many (rows, columns) of units."""
        return grid[0] * self.unit_tokens, grid[1] * self.unit_tokens

    def latent_shape(self, grid: tuple[int, int], channels: int, batch: int = 1) -> tuple[int, ...]:
        """Shape of the latent of so many (rows, columns) of units: (B, C, h, w), or (B, C, 1, h, w)."""
        time = (1,) if self.has_frames else ()
        return batch, channels, *time, grid[0] * self.cells, grid[1] * self.cells
