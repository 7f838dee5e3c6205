"""What a picture of the world shows, as plain values, and its caption."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white")
TEXTURES = ("plain", "striped", "dotted", "checked")
SHAPES = ("ball", "box", "cone", "ring")
SIZES = ("small", "big")
PLACES = ("left", "middle", "right")
GROUNDS = ("meadow", "sea", "desert", "snow")
TIMES = ("day", "dusk", "night")


@dataclass(frozen=True)
class Thing:
    """One object that stands on the ground.

    Attributes:
        size, colour, texture, shape, place: One of the module's words each; the caption names all five.
        shift: (x, y) deviation from the place, each -1 to 1.
    """

    size: str
    colour: str
    texture: str
    shape: str
    place: str
    shift: tuple[float, float] = (0.0, 0.0)

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.texture} {self.shape} {self.place}"


@dataclass(frozen=True)
class Scene:
    """A landscape with one to three things.

    Attributes:
        ground, time: One of the module's words each.
        light: Side of the sun or moon, "left" or "right"; None for an empty sky.
        things: From left to right, no two at the same place.
        detail: Seed of what no caption tells: the line of the horizon, the ground's waves.
    """

    ground: str
    time: str
    light: str | None
    things: tuple[Thing, ...]
    detail: int = 0

    @property
    def caption(self) -> str:
        """All that a picture of this scene must show, in the words of the world's vocabulary."""
        sky = [] if self.light is None else [f"{'moon' if self.time == 'night' else 'sun'} {self.light}"]
        return ", ".join([*map(str, self.things), f"{self.ground} {self.time}", *sky])


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption of this world can hold, but the article."""
    return (*SIZES, *COLOURS, *TEXTURES, *SHAPES, *PLACES, *GROUNDS, *TIMES, "sun", "moon")


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene drawn from the world: every word of a kind equally often."""
    places = sorted(rng.choice(len(PLACES), size=int(rng.integers(1, 4)), replace=False))
    colours = rng.permutation(COLOURS)
    things = tuple(
        Thing(
            size=str(rng.choice(SIZES)),
            colour=str(colour),
            texture=str(rng.choice(TEXTURES)),
            shape=str(rng.choice(SHAPES)),
            place=PLACES[place],
            shift=(float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1))),
        )
        for place, colour in zip(places, colours, strict=False)
    )
    light = (None, "left", "right")[int(rng.integers(3))]
    return Scene(
        ground=str(rng.choice(GROUNDS)),
        time=str(rng.choice(TIMES)),
        light=light,
        things=things,
        detail=int(rng.integers(2**31)),
    )
