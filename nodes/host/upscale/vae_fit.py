"""Whether a VAE makes the latents that a model takes, found before any work.

Source: ``comfy.sd.VAE`` (``latent_channels``, ``latent_dim``, ``spacial_compression_encode``), ``latent_channels`` of
``comfy.latent_formats.LatentFormat``, ``comfy.controlnet.ControlNet.get_control`` and
``comfy.model_base.Flux.extra_conds``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....clear_core.layout import PATCH, TOKEN_PIXELS
from ....clear_core.sdedit import Stage
from ..model.family import model_shape
from .prompts import controls_of

CONNECT = "connect FLUX's VAE, such as ae.safetensors in Load VAE."
CELL_PIXELS = TOKEN_PIXELS // PATCH


def check_vae(vae: Any, model: ModelPatcher) -> None:
    """Check the VAE of a run by what it says about itself.

    Raises:
        ValueError: It does not fit the model; the sentence says how it differs.
    """
    if vae is None or getattr(vae, "first_stage_model", vae) is None:
        raise ValueError(f"vae is empty, as from a checkpoint without one; {CONNECT}")
    channels = channels_of(model)
    found = misfit(vae, channels)
    if found:
        raise ValueError(f"vae makes {found}, but the model takes a picture's of {channels} channels; {CONNECT}")


def check_encoded(prompts: Iterable[Any], name: str, model: ModelPatcher) -> None:
    """Check the reference latents of a conditioning and the VAEs of its ControlNets.

    Args:
        prompts: The host's conditioning.
        name: What to call it in a message.

    Raises:
        ValueError: One does not fit the model.
    """
    check_controls(prompts, name)
    if model_shape(model).family.takes_references:
        check_references(prompts, name, channels_of(model))


def channels_of(model: ModelPatcher) -> int:
    """Channels of the latents that a model takes."""
    return model.get_model_object("latent_format").latent_channels


def misfit(vae: Any, channels: int) -> str | None:
    """What a VAE makes instead of a picture's latents of so many channels, as far as it says; else None."""
    made = getattr(vae, "latent_channels", channels)
    dimensions = getattr(vae, "latent_dim", 2)
    if dimensions != 2:
        return f"latents of {made} channels for {'videos' if dimensions == 3 else 'sound'}"
    if made != channels:
        return f"latents of {made} channels"
    compression = getattr(vae, "spacial_compression_encode", None)
    pixels = compression() if compression else CELL_PIXELS
    return None if pixels == CELL_PIXELS else f"latents of one cell for {pixels} x {pixels} px"


def check_controls(prompts: Iterable[Any], name: str) -> None:
    """Raises a ValueError if a ControlNet that encodes its hint has no VAE for it, or one that does not fit."""
    for prompt in prompts:
        for control in controls_of(prompt):
            space = getattr(control, "latent_format", None)
            if space is None:
                continue
            if control.vae is None:
                raise ValueError(f"a ControlNet in {name} has no vae; connect FLUX's VAE where it is applied.")
            found = misfit(control.vae, space.latent_channels)
            if found:
                raise ValueError(
                    f"the vae of a ControlNet in {name} makes {found}, but it takes a picture's of "
                    f"{space.latent_channels} channels; connect FLUX's VAE where it is applied."
                )


def check_references(prompts: Iterable[Any], name: str, channels: int) -> None:
    """Raises a ValueError if a reference latent is none of this model's."""
    for prompt in prompts:
        for latent in prompt[1].get("reference_latents") or ():
            if isinstance(latent, Tensor) and (latent.ndim != 4 or latent.shape[1] != channels):
                raise ValueError(
                    f"a reference latent in {name} has the shape {tuple(latent.shape)}; expected (batch, {channels}, "
                    "height, width): encode the reference with FLUX's VAE."
                )


def check_latent(latent: Tensor, batch: int, stage: Stage, model: ModelPatcher) -> None:
    """Check what a VAE made, which may be another pack's and say nothing about itself.

    Args:
        latent: Of the stage's padded frame.
        batch: Pictures.

    Raises:
        ValueError: It is no latent (batch, C, h, w) of the model.
    """
    wanted = (batch, channels_of(model), *(PATCH * side for side in stage.grid))
    if tuple(latent.shape) != wanted:
        raise ValueError(
            f"vae made a latent of the shape {tuple(latent.shape)}, but the model takes {wanted} for this picture; "
            f"{CONNECT}"
        )
