"""The settings that are compared, and the pictures they are compared on."""

from __future__ import annotations

from dataclasses import dataclass

from clear_core import ClearSpec


@dataclass(frozen=True)
class Recipe:
    """How a call at a large size differs from one at a size of the training.

    Attributes:
        ntk: How the rotary base is stretched: "constant", "clipped" or "fading" (``clear_core.rope``).
        factor: On the rotary base; 1 is off, 0 lets "fading" decide by the frame.
        proportional: Whether attention is sharpened by the number of tokens.
        color_fix: Of ``clear_core.sdedit``, after decoding.
    """

    ntk: str = "constant"
    factor: float = 1.0
    proportional: bool = False
    color_fix: str = "none"

    @property
    def name(self) -> str:
        """A row's name."""
        ntk = "no NTK" if self.factor == 1 else f"NTK {self.ntk}" + (f" {self.factor:g}" if self.factor else "")
        parts = [ntk, "proportional" if self.proportional else "", "" if self.color_fix == "none" else "colour fix"]
        return ", ".join(part for part in parts if part)

    @property
    def sampled(self) -> Recipe:
        """The recipe of its latents: the colour fix comes after them."""
        return Recipe(self.ntk, self.factor, self.proportional)


PLAIN = Recipe()
PUBLISHED = Recipe("constant", 10.0, True)
"""Of CLEAR's notebook for FLUX.1 above its training's size."""

RECIPES = (
    PLAIN,
    Recipe(proportional=True),
    Recipe("constant", 2.0),
    Recipe("constant", 10.0),
    PUBLISHED,
    Recipe("clipped", 10.0, True),
    Recipe("fading", 0.0, True),
)


@dataclass(frozen=True)
class Extent:
    """How much is run.

    Attributes:
        spec: The window of the distilled weights.
        scenes: Number of held-out scenes, each with noise of its own.
        side: Of the large pictures in px; twice the largest of the model's training.
        start: Side of the drawn pictures that are enlarged to it.
        strengths: Shares of the schedule that are run; 1 starts from noise.
        steps: Of the whole schedule.
        recipes: All of them but for those with a colour fix, which every recipe is judged with, too.
    """

    spec: ClearSpec = ClearSpec(8)
    scenes: int = 2
    side: int = 2048
    start: int = 512
    strengths: tuple[float, ...] = (0.5, 0.7, 1.0)
    steps: int = 12
    recipes: tuple[Recipe, ...] = RECIPES


EXTENTS = {"full": Extent(), "quick": Extent(scenes=1, side=64, start=32, strengths=(0.5,), steps=2)}
