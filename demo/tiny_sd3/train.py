"""Trains the tiny SD3 from nothing: ``python -m demo.tiny_sd3.train --out out/tiny_sd3``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..training import Recipe, Stage, run
from .model import new_tiny_sd3, velocity
from .weights import TABLE, save_tiny_sd3

# At most 20 tokens a side of the table's 32, as no SD3 was trained on pictures that fill its table.
SMALL = ((160, 192, 32), (192, 160, 32), (128, 240, 32), (160, 192, 32), (192, 160, 32), (240, 128, 32))
LARGE = ((256, 256, 16), (192, 320, 16), (256, 256, 16), (320, 192, 16), (320, 320, 8))

# Until the last stage a picture has the middle of the table, where the model finds it after training. The last stage
# moves it about, so that the whole table is trained: "random crop augmentation on positional embeddings" of SD3.5
# Medium's model card.
STAGES = (
    Stage(2200, SMALL, (1e-3, 1e-3)),
    Stage(600, LARGE, (1e-3, 1e-3), shift=0.3),
    Stage(1400, LARGE, (1e-3, 2e-5), shift=0.3, moved=True),
)


@functools.cache
def plain_table() -> Tensor:
    """(1, side, side, width): the table as it is before and after training."""
    table = new_tiny_sd3().state_dict()[TABLE]
    side = round(table.shape[1] ** 0.5)
    return table.unflatten(1, (side, side))


def moved_velocity(model: Any, latents: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor) -> Tensor:
    """The velocity with the picture somewhere on the table; where, its noise levels decide.

    The table itself is moved, since compiled code reads the middle of it. It stays moved until the next call: the
    backward pass may read it again.
    """
    table = plain_table()
    draw = torch.Generator().manual_seed(int(sigma.double().sum().item() * 2**32))
    moves: list[int] = []
    for side, cells in zip(table.shape[1:3], latents.shape[2:], strict=True):
        tokens = cells // 2
        first = int(torch.randint(side - tokens + 1, (), generator=draw))
        moves.append((side - tokens) // 2 - first)
    model.pos_embed.pos_embed.copy_(table.roll(moves, (1, 2)).flatten(1, 2))
    return velocity(model, latents, sigma, context, pooled)


def save_trained(model: Any, path: Path, metadata: dict[str, str]) -> None:
    """Writes the model with its table where it was."""
    model.pos_embed.pos_embed.copy_(plain_table().flatten(1, 2))
    save_tiny_sd3(model, path, metadata)


RECIPE = Recipe("tiny_sd3", new_tiny_sd3, velocity, save_trained, STAGES, moved_velocity)


if __name__ == "__main__":
    run(RECIPE, (__doc__ or "").partition("\n")[0])
