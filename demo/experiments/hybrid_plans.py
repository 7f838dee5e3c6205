"""What the hybrid laboratory compares: its settings, and the plans in each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

from clear_core import SequenceLayout, token_grid
from clear_core.layout import TOKEN_PIXELS
from clear_core.sdedit import sdedit_sigmas

from ..tiny_flux.caption import TOKENS
from .hybrid_attention import BLOCKS, Plan

DENSE = Plan("dense")


@dataclass(frozen=True)
class Setting:
    """A way to a picture, the same for every plan in it.

    Attributes:
        side: Of the picture in px.
        scenes: Number of scenes, each with noise of its own.
        strength: Share of the schedule that is run; 1 starts from noise, less redraws an enlarged picture.
        tile: Side of the tiles in px; 0 without tiles.
        steps: Of the whole schedule.
    """

    side: int
    scenes: int
    strength: float = 1.0
    tile: int = 0
    steps: int = 10

    @property
    def name(self) -> str:
        if self.strength == 1:
            return f"{self.side} px from noise"
        return f"{self.side} px, SDEdit {self.strength:g} in tiles of {self.tile} px"

    @property
    def called_side(self) -> int:
        """Side in px of what the model is called for."""
        return self.tile or self.side

    @property
    def sigmas(self) -> list[float]:
        """The noise levels of the run, the last one 0."""
        return sdedit_sigmas(self.steps, self.strength).tolist()

    def share(self, plan: Plan) -> float:
        """Counted pairs of a plan's run over dense attention's."""
        side = self.called_side // 8
        return plan.share(SequenceLayout(TOKENS, token_grid(side, side)), self.sigmas[:-1])


def overview(radius: int, down_factor: int = 4) -> Plan:
    return Plan("overview", radius, down_factor)


def pooled(radius: int, down_factor: int = 4) -> Plan:
    return Plan("pooled", radius, down_factor)


def plain(radius: int) -> Plan:
    return Plan("plain", radius)


def early(plan: Plan, *starts: float) -> list[Plan]:
    """The plan with a dense first share of the schedule, by its length."""
    return [replace(plan, start=start) for start in starts]


def some(plan: Plan, *blocks: tuple[int, ...]) -> list[Plan]:
    """The plan with blocks that stay dense."""
    return [replace(plan, dense_blocks=each) for each in blocks]


def distilled(plan: Plan) -> Plan:
    return replace(plan, distilled=True)


NOISE: dict[Setting, list[Plan]] = {
    Setting(512, 4): [
        *(each(radius) for radius in (4, 8, 16) for each in (plain, pooled, overview)),
        *early(plain(8), 0.1, 0.2, 0.3, 0.5),
        *some(plain(8), *((block,) for block in range(BLOCKS)), (0, 3)),
        *early(overview(4), 0.1, 0.2, 0.3),
        *some(overview(4), (0,), (3,)),
        *(distilled(each(radius)) for radius in (4, 8, 16) for each in (plain, pooled)),
        *map(plain, (12, 24)),
        overview(2),
        *(overview(4, down) for down in (2, 8)),
        *early(plain(4), 0.2),
        *early(plain(16), 0.2),
        *early(overview(8), 0.2),
        replace(plain(8), start=0.2, dense_blocks=(0, 3)),
    ],
    Setting(768, 2): [plain(12), overview(6), overview(12)],
    Setting(1024, 2): [
        *(each(radius) for radius in (8, 16) for each in (plain, overview)),
        distilled(plain(8)),
        *early(overview(8), 0.2),
    ],
}
"""From noise. Each setting also has dense attention, which the others are compared with."""


def in_tiles(strength: float) -> list[Plan]:
    """Plans of redrawing in tiles; a dense start is the first of the steps that are run."""
    return [
        *(each(radius) for radius in (4, 8) for each in (plain, overview)),
        plain(16),
        *early(plain(8), round(1 - strength + 0.1, 3)),
        *some(plain(8), (0,)),
        distilled(plain(4)),
    ]


TILE_BASE = Setting(512, 4)
TILES: dict[Setting, list[Plan]] = {Setting(1024, 2, strength, 576): in_tiles(strength) for strength in (0.5, 0.3)}
"""From the dense picture of half the side, in four tiles that share 128 px; without a caption, since the tiny FLUX
would draw the whole scene into each tile."""

SETTINGS = NOISE | TILES


def at_side(eighth: int) -> list[Plan]:
    """Plans of one call, whose windows are an eighth, a quarter and a half of the side."""
    radii = (eighth, 2 * eighth, 4 * eighth)
    return [
        overview(eighth, 1),
        *(each(radius) for radius in radii for each in (plain, pooled, overview)),
        *(overview(radius, down) for radius in radii for down in (2, 8)),
        *(distilled(each(radius)) for radius in radii if radius in (4, 8, 16) for each in (plain, pooled)),
    ]


FLOWS: dict[tuple[int, int], list[Plan]] = {(512, 4): at_side(4), (1024, 2): at_side(8)}
"""Plans of single calls by side in px and number of scenes."""


def wanted(settings: Iterable[Setting]) -> list[tuple[Setting, Plan]]:
    """Every picture's setting and plan, dense attention first in each setting."""
    return [(setting, plan) for setting in settings for plan in (DENSE, *SETTINGS[setting])]


def fraction(setting: Setting, plan: Plan) -> str:
    """The radius as a part of the side of what the model is called for: an eighth of the side is "1/8"."""
    return str(Fraction(plan.radius, setting.called_side // TOKEN_PIXELS))
