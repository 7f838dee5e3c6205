"""Drawing a scene at any size, smoothly enough for the tiny codec's sixteen coefficients per 8 x 8 pixels.

Shapes are signed distances, softened over a fixed number of pixels. Things of the caption scale with the image; the
waves of the ground do not, so that a larger image has more of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .scene import Scene, Thing

Array = NDArray[np.floating[Any]]
"""Images are float32; distances and patterns may be wider."""

# Half the width in pixels of the transition between two surfaces. Sharper edges would lose most of their energy with
# the discarded frequencies.
EDGE = 5.0

RGB = {
    "red": (0.85, 0.16, 0.14),
    "orange": (0.95, 0.52, 0.10),
    "yellow": (0.96, 0.85, 0.20),
    "green": (0.12, 0.58, 0.22),
    "blue": (0.14, 0.30, 0.85),
    "purple": (0.55, 0.20, 0.68),
    "white": (0.95, 0.95, 0.95),
}
# Far and near colour of the ground by day.
GROUND = {
    "meadow": ((0.50, 0.70, 0.36), (0.30, 0.55, 0.20)),
    "sea": ((0.42, 0.70, 0.76), (0.10, 0.38, 0.58)),
    "desert": ((0.88, 0.74, 0.50), (0.76, 0.56, 0.32)),
    "snow": ((0.88, 0.91, 0.96), (0.74, 0.80, 0.90)),
}
# Amplitude of the ground's waves in brightness, and their ratio of length to height.
WAVES = {"meadow": (0.05, 1.3), "sea": (0.09, 3.5), "desert": (0.07, 2.0), "snow": (0.03, 2.0)}
# Colour of the sky at the top and at the horizon, and the light on everything else.
SKY = {
    "day": ((0.36, 0.60, 0.90), (0.76, 0.87, 0.96), (1.00, 1.00, 1.00)),
    "dusk": ((0.42, 0.26, 0.50), (0.98, 0.62, 0.36), (0.92, 0.74, 0.66)),
    "night": ((0.04, 0.05, 0.16), (0.16, 0.20, 0.38), (0.46, 0.50, 0.66)),
}
LAMP = {"day": (1.0, 0.95, 0.62), "dusk": (1.0, 0.80, 0.40), "night": (0.92, 0.93, 0.85)}
# Random shifts are small: a model of this size should spend its capacity on the captions.
ACROSS = {"left": 0.20, "middle": 0.50, "right": 0.80}
RADIUS = {"small": 0.12, "big": 0.18}


def draw_scene(scene: Scene, height: int, width: int) -> Array:
    """The picture of a scene.

    Args:
        height, width: Size in pixels, any.

    Returns:
        (height, width, 3) RGB, 0 to 1.
    """
    rng = np.random.default_rng(scene.detail)
    ys = np.arange(height, dtype=np.float32)[:, None] + 0.5
    xs = np.arange(width, dtype=np.float32)[None, :] + 0.5
    light = np.asarray(SKY[scene.time][2], np.float32)

    horizon = height * (
        rng.uniform(0.47, 0.50)
        + rng.uniform(0.0, 0.015) * np.sin(2 * np.pi * (xs / width * rng.uniform(0.7, 1.8) + rng.random()))
    )
    horizon = horizon.astype(np.float32)
    picture = blend(np.clip(ys / horizon.mean(), 0, 1), *SKY[scene.time][:2])
    picture = np.broadcast_to(picture, (height, width, 3)).copy()
    if scene.light is not None:
        draw_lamp(picture, LAMP[scene.time], ACROSS[scene.light], (ys, xs), rng)

    top = max(int(horizon.min() - 2 * EDGE), 0)
    depth = np.clip((ys[top:] - horizon) / (height - horizon.mean()), 0, 1)
    ground = blend(depth, *GROUND[scene.ground])
    ground += (waves(*WAVES[scene.ground], depth, ys[top:], xs, rng))[..., None]
    paint(picture[top:], ground * light, inside(horizon - ys[top:]))
    for thing in scene.things:
        draw_thing(picture, thing, light, RADIUS[thing.size] * min(height, width))
    return np.clip(picture, 0, 1, out=picture)


def inside(distance: Array) -> Array:
    """Coverage of a pixel by a surface, from its signed distance in pixels (negative inside)."""
    t = np.clip(0.5 - distance / (2 * EDGE), 0, 1)
    return t * t * (3 - 2 * t)


def blend(amount: Array, first: tuple[float, ...], second: tuple[float, ...]) -> Array:
    """Colours between two, (..., 3); ``amount`` 0 gives the first."""
    start, end = np.asarray(first, np.float32), np.asarray(second, np.float32)
    return start + amount[..., None] * (end - start)


def paint(picture: Array, colour: Array, cover: Array) -> None:
    """Blends a colour into an image in place."""
    picture += cover[..., None] * (colour - picture)


def draw_lamp(
    picture: Array,
    colour: tuple[float, float, float],
    across: float,
    position: tuple[Array, Array],
    rng: np.random.Generator,
) -> None:
    """The sun or the moon, with its glow, at a share ``across`` of the width; ``position`` is each pixel's (y, x)."""
    ys, xs = position
    height, width = picture.shape[:2]
    size = min(height, width)
    x = width * (across + rng.uniform(-0.01, 0.01))
    y = height * rng.uniform(0.16, 0.18)
    radius = size * 0.065
    lamp = np.asarray(colour, np.float32)
    squared = (ys - y) ** 2 + (xs - x) ** 2
    paint(picture, lamp, 0.45 * np.exp(squared / (-2 * (2.2 * radius) ** 2)))
    paint(picture, lamp, inside(np.sqrt(squared) - radius))


def waves(strength: float, stretch: float, depth: Array, ys: Array, xs: Array, rng: np.random.Generator) -> Array:
    """Brightness of the ground: two crossing waves of a few dozen pixels, flatter and fainter far away."""
    total = np.zeros(1, np.float32)
    for sign in (-1, 1):
        length = math.exp(rng.uniform(math.log(24), math.log(44)))
        turn = 2 * math.pi * (ys / length + sign * xs / (length * stretch) + rng.random())
        total = total + np.sin(turn, dtype=np.float32)
    return total * (0.5 * strength) * (0.3 + 0.7 * depth)


def draw_thing(picture: Array, thing: Thing, light: Array, radius: float) -> None:
    """One thing and its shadow; touches only the pixels around it."""
    height, width = picture.shape[:2]
    x = width * (ACROSS[thing.place] + 0.008 * thing.shift[0])
    foot = height * (0.82 + 0.008 * thing.shift[1])
    y = foot - radius
    reach = 1.5 * radius + 2 * EDGE
    top, bottom = max(int(y - reach), 0), min(int(y + reach) + 1, height)
    left, right = max(int(x - reach), 0), min(int(x + reach) + 1, width)
    if top >= bottom or left >= right:
        return
    view = picture[top:bottom, left:right]
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - y
    dx = np.arange(left, right, dtype=np.float32)[None, :] + 0.5 - x

    shadow = np.exp(-2.0 * ((dx / (1.1 * radius)) ** 2 + ((dy - radius) / (0.28 * radius)) ** 2))
    view *= 1 - 0.45 * shadow[..., None]
    colour = np.asarray(RGB[thing.colour], np.float32)
    # Light comes from the upper left, so that shapes look solid.
    shade = 1.0 - 0.16 * (dx + dy) / radius
    pattern = texture(thing, dy / radius, dx / radius, radius)
    # The pattern is a darker tone of the same hue: the codec keeps fewer colour than brightness frequencies.
    surface = colour * (shade * (1 - 0.5 * pattern))[..., None]
    paint(view, surface * light, inside(outline(thing.shape, dy, dx, radius)))


def outline(shape: str, dy: Array, dx: Array, radius: float) -> Array:
    """Signed distance in pixels to the edge of a shape centred at 0."""
    if shape == "ball":
        return np.sqrt(dy * dy + dx * dx) - radius
    if shape == "ring":
        return np.abs(np.sqrt(dy * dy + dx * dx) - 0.68 * radius) - 0.32 * radius
    if shape == "box":
        qy, qx = np.abs(dy) - 0.80 * radius, np.abs(dx) - 0.80 * radius
        outer = np.sqrt(np.maximum(qy, 0) ** 2 + np.maximum(qx, 0) ** 2)
        return outer + np.minimum(np.maximum(qy, qx), 0) - 0.12 * radius
    # A cone: two slopes and a base.
    slope = (2 * np.abs(dx) - (dy + radius)) / math.sqrt(5)
    return np.maximum(slope, dy - 0.95 * radius)


def texture(thing: Thing, v: Array, u: Array, radius: float) -> Array:
    """Darkness of a thing's pattern, 0 to 1; ``v`` and ``u`` are in radii."""
    if thing.texture == "striped":
        wave = np.sin(3.2 * math.pi * (0.8 * u + 0.6 * v))
    elif thing.texture == "dotted":
        wave = np.sin(2.8 * math.pi * u) + np.sin(2.8 * math.pi * v) - 0.75
    elif thing.texture == "checked":
        wave = 1.4 * np.sin(2.2 * math.pi * u) * np.sin(2.2 * math.pi * v)
    else:
        return np.zeros(1, np.float32)
    # Larger images have harder pattern edges, up to the softness of all edges.
    t = np.clip(0.5 + wave * (radius / (6.4 * EDGE) + 0.2), 0, 1)
    return t * t * (3 - 2 * t)
