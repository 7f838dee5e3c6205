"""Pictures from the tiny FLUX: Euler along the flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .caption import encode_captions
from .model import velocity


def sigmas(steps: int, shift: float = 3.0, strength: float = 1.0) -> Tensor:
    """(n + 1,) noise levels from the start down to 0: FLUX's static shift, its last part for SDEdit.

    Args:
        steps: Steps of the whole schedule.
        shift: Static shift s of ``s * x / (1 + (s - 1) * x)``.
        strength: Share of the schedule that is run, above 0 to 1.
    """
    x = torch.linspace(1, 1 / steps, steps)[int(steps - steps * strength):]
    return torch.cat([shift * x / (1 + (shift - 1) * x), torch.zeros(1)])


@torch.no_grad()
def sample(
    model: nn.Module,
    captions: Sequence[str],
    noise: Tensor,
    *,
    steps: int = 20,
    guidance: float = 1.0,
    cfg: float = 1.0,
    start: Tensor | None = None,
    strength: float = 1.0,
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    """Latents of new pictures, or of a picture redrawn.

    Args:
        captions: One text per picture.
        noise: (B, 16, h, w) standard normal; h and w even.
        steps: Steps of the whole schedule.
        guidance: What the model's own guidance input gets, 1 for none.
        cfg: Classifier-free guidance, which calls the model a second time; 1 for none.
        start: (B, 16, h, w) latents to redraw (SDEdit).
        strength: Share of the schedule that is run on ``start``.

    Returns:
        (B, 16, h, w).
    """
    levels = sigmas(steps, strength=strength)
    context, pooled = encode_captions(captions)
    empty = encode_captions([""] * len(captions))
    scale = torch.full((len(captions),), guidance)
    latents = noise if start is None else levels[0] * noise + (1 - levels[0]) * start
    for now, after in zip(levels[:-1], levels[1:]):
        sigma = now.expand(len(captions))
        flow = velocity(model, latents, sigma, context, pooled, scale)
        if cfg != 1.0:
            plain = velocity(model, latents, sigma, *empty, scale)
            flow = plain + cfg * (flow - plain)
        latents = latents + (after - now) * flow
        if on_step is not None:
            on_step()
    return latents
