"""Counts the things in a picture of the world against its caption.

A pixel belongs to the surface whose colour is nearest: sky, ground, lamp, or a thing's colour in light and shade, all
under the scene's light. Connected pixels of one colour are a blob. White is left out: white things are not told from
snow, the moon and the sky at the horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..world import Scene, Thing
from ..world.draw import ACROSS, GROUND, LAMP, RADIUS, RGB, SKY

COLOURS = tuple(name for name in RGB if name != "white")
SIDE = 128
"""Pictures are judged at this many px a side, whatever their own size."""

TONES = tuple(np.linspace(0.36, 1.3, 12))
"""Brightness of a thing's surface: shade times texture."""

NEAR = 0.16
"""Largest distance in RGB at which a pixel still belongs to a surface."""

SMALLEST = 0.0015
"""Share of the picture below which a blob is not counted: a twentieth of the smallest thing."""

REACH = 0.13
"""Furthest distance, in sides, of a blob's middle from where the caption puts the thing."""

PART = 0.3
"""Least share of the thing's expected area that its blob must have."""


@dataclass(frozen=True)
class Blob:
    """Connected pixels of one colour.

    Attributes:
        colour: A word of the world.
        area: Share of the picture.
        y, x: Middle, in sides of the picture.
    """

    colour: str
    area: float
    y: float
    x: float


@dataclass(frozen=True)
class Count:
    """Things of a caption in a picture.

    Attributes:
        wanted: The caption's, without white ones.
        found: Of those, the ones with a blob of their colour and about their area at their place.
        surplus: Further blobs in the caption's colours.
    """

    wanted: int
    found: int
    surplus: int


def count_things(picture: Tensor, scene: Scene) -> Count:
    """Compares a picture, (3, H, W) in 0 to 1, with its scene's caption."""
    wanted = [thing for thing in scene.things if thing.colour in COLOURS]
    left = [blob for blob in blobs(picture, scene) if any(blob.colour == thing.colour for thing in wanted)]
    found = 0
    for thing in wanted:
        fitting = [blob for blob in left if fits(blob, thing)]
        if fitting:
            left.remove(max(fitting, key=lambda blob: blob.area))
            found += 1
    return Count(len(wanted), found, len(left))


def found_share(counts: Sequence[Count]) -> float:
    """Share of the wanted things that are found, over several pictures, 0 to 1; 1 if nothing is wanted."""
    wanted = sum(count.wanted for count in counts)
    return sum(count.found for count in counts) / wanted if wanted else 1.0


def fits(blob: Blob, thing: Thing) -> bool:
    """Whether a blob can be a thing: colour, place and area."""
    radius = RADIUS[thing.size]
    distance = np.hypot(blob.x - ACROSS[thing.place], blob.y - (0.82 - radius))
    # A ball's area; a cone has 0.6 of it, a ring 0.87, a box about as much.
    return blob.colour == thing.colour and distance < REACH and blob.area > PART * np.pi * radius**2


def blobs(picture: Tensor, scene: Scene) -> list[Blob]:
    """The blobs of every colour but white that are large enough to count."""
    small = F.interpolate(picture[None], size=(SIDE, SIDE), mode="area")[0]
    masks = surface_masks(small, scene)
    # A thing that its texture cuts into pieces stays one: gaps of up to four px are closed.
    closed = -F.max_pool2d(-F.max_pool2d(masks[:, None].float(), 5, 1, 2), 5, 1, 2)
    labels = components(closed[:, 0] > 0.5) * masks
    found: list[Blob] = []
    for name, plane in zip(COLOURS, labels, strict=True):
        for label in plane.unique().tolist():
            ys, xs = (plane == label).nonzero().float().T
            if label and len(ys) >= SMALLEST * SIDE**2:
                found.append(Blob(name, len(ys) / SIDE**2, ys.mean().item() / SIDE, xs.mean().item() / SIDE))
    return found


def surface_masks(picture: Tensor, scene: Scene) -> Tensor:
    """(6, H, W) whether a pixel has each colour of ``COLOURS``."""
    light = torch.tensor(SKY[scene.time][2])
    tones = torch.tensor(TONES).float()[:, None]
    things = [torch.tensor(RGB[name]) * light * tones for name in COLOURS]
    high, low = torch.tensor(SKY[scene.time][0]), torch.tensor(SKY[scene.time][1])
    far, near = (torch.tensor(colour) * light for colour in GROUND[scene.ground])
    lamp = torch.tensor(LAMP[scene.time])
    part = torch.linspace(0, 1, 12)[:, None]
    sky = high + part * (low - high)
    glow = (sky[:, None] + 0.5 * part * (lamp - sky[:, None])).flatten(0, 1)
    ground = (far + part * (near - far))[:, None] * torch.linspace(0.55, 1.15, 8)[:, None]
    behind = torch.cat([glow, lamp[None], ground.flatten(0, 1)])
    pixels = picture.permute(1, 2, 0).flatten(0, 1)
    distances = torch.stack([torch.cdist(pixels, each).amin(1) for each in (*things, behind)])
    nearest = distances.argmin(0).where(distances.amin(0) < NEAR, torch.tensor(-1))
    return torch.stack([nearest == index for index in range(len(COLOURS))]).unflatten(1, picture.shape[1:])


def components(masks: Tensor) -> Tensor:
    """Labels of the connected pixels of (C, H, W) masks, corners included; 0 outside, otherwise above 0."""
    labels = torch.arange(1, masks.numel() + 1).view(masks.shape).float() * masks
    while True:
        spread = F.max_pool2d(labels[:, None], 3, 1, 1)[:, 0] * masks
        if torch.equal(spread, labels):
            return labels
        labels = spread
