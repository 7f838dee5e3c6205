"""A small ControlNet for the tiny FLUX: its conditions, and the model under it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clear_core import token_grid
from clear_core.integrations.flux_denoiser import flux_arguments, pack_latent, unpack_latent

from ...tiny_flux.codec import encode
from ...tiny_flux.model import CONFIG, GUIDANCE
from ..picture_measures import levels_apart
from .plans import Condition

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

# Shares of red, green and blue in brightness (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
# Side in px of the cells whose means a tile condition keeps.
CELL = 16


def condition_of(kind: Condition, pictures: Tensor) -> Tensor:
    """What a condition keeps of (B, 3, H, W) pictures, as pictures again: their grey, or their means over cells."""
    if kind == "grey":
        grey = (pictures * torch.tensor(LUMA, dtype=pictures.dtype)[:, None, None]).sum(1, keepdim=True)
        return grey.expand_as(pictures)
    return F.interpolate(F.avg_pool2d(pictures, CELL), scale_factor=CELL, mode="bicubic").clamp(0, 1)


def condition_tokens(kind: Condition, pictures: Tensor) -> Tensor:
    """(B, tokens, 64): a condition as a ControlNet takes it."""
    return pack_latent(encode(condition_of(kind, pictures)))


def condition_error(kind: Condition, picture: Tensor, wanted: Tensor) -> float:
    """Root mean square difference of two (3, H, W) pictures' conditions, in levels of 255."""
    one, other = (condition_of(kind, each[None]) for each in (picture, wanted))
    return levels_apart(one, other)


def new_control(model: FluxTransformer2DModel) -> FluxControlNetModel:
    """A ControlNet with a double and a single block that start as the model's first ones, and adds nothing yet."""
    from diffusers.models.controlnets.controlnet_flux import FluxControlNetModel

    net: Any = FluxControlNetModel.from_transformer(
        model,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=CONFIG["attention_head_dim"],
        num_attention_heads=CONFIG["num_attention_heads"],
        load_weights_from_transformer=False,
    )
    state = model.state_dict()
    net.load_state_dict({name: state[name] for name in net.state_dict() if name in state}, strict=False)
    return net


def controlled_tokens(model: Any, net: Any, condition: Tensor, arguments: dict[str, Any]) -> Tensor:
    """The velocity of a call under a ControlNet, as tokens."""
    doubles, singles = net(controlnet_cond=condition, **arguments)
    return model(controlnet_block_samples=doubles, controlnet_single_block_samples=singles, **arguments)[0]


@dataclass(frozen=True)
class ControlledDenoiser:
    """Velocity of the tiny FLUX under a caption and a condition.

    Attributes:
        model, net: The transformer, with or without windows, and the ControlNet, which attends densely.
        condition: (1, tokens, 64).
        context, pooled: Of the caption.
    """

    model: FluxTransformer2DModel
    net: FluxControlNetModel
    condition: Tensor
    context: Tensor
    pooled: Tensor

    def __call__(self, latent: Tensor, sigma: float) -> Tensor:
        one = latent.new_ones(1)
        arguments = flux_arguments(latent, one * sigma, self.context, self.pooled, one * GUIDANCE)
        tokens = controlled_tokens(self.model, self.net, self.condition, arguments)
        return unpack_latent(tokens, token_grid(*latent.shape[2:]))
