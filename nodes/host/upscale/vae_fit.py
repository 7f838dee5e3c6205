"""Whether a VAE makes the latents that a model takes, found before any work.

Source: ``comfy.sd.VAE`` (``latent_channels``, ``latent_dim``, ``spacial_compression_encode``), ``latent_channels`` of
``comfy.latent_formats.LatentFormat``, ``comfy.controlnet.ControlNet.get_control`` and
``comfy.model_base.Flux.extra_conds``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from ....clear_core.sdedit import Stage, check_finite
from ..model.picture_model import PictureModel
from .prompts import controls_of

DIMENSIONS = {1: "sound", 2: "pictures", 3: "videos"}
"""What a VAE says that its latents are of."""


def check_vae(vae: Any, picture: PictureModel) -> None:
    """Check the VAE of a run by what it says about itself.

    Raises:
        ValueError: It does not fit the model; the sentence says how it differs.
    """
    if vae is None or getattr(vae, "first_stage_model", vae) is None:
        raise ValueError(f"vae is empty, as from a checkpoint without one; {connect(picture)}")
    found = misfit(vae, picture.channels, picture.units.latent_pixels, picture.units.has_frames)
    if found:
        wanted = f"a {'video' if picture.units.has_frames else 'picture'}'s of {picture.channels} channels"
        raise ValueError(f"vae makes {found}, but the model takes {wanted}; {connect(picture)}")


def connect(picture: PictureModel) -> str:
    """What to do about a VAE that does not fit."""
    if picture.units.latent_pixels == 1:
        return f"connect the VAE for pixels that belongs to {picture.name} (pixel_space in Load VAE)."
    return f"connect the VAE that belongs to {picture.name}, with Load VAE."


def check_encoded(prompts: Iterable[Any], name: str, picture: PictureModel) -> None:
    """Check the reference latents of a conditioning and the VAEs of its ControlNets.

    Args:
        prompts: The host's conditioning.
        name: What to call it in a message.

    Raises:
        ValueError: One does not fit the model.
    """
    check_controls(prompts, name, picture)
    if picture.takes_references:
        check_references(prompts, name, picture)


def misfit(vae: Any, channels: int, cell_pixels: int, has_frames: bool) -> str | None:
    """What a VAE makes instead of such latents, as far as it says; else None.

    Args:
        channels: Of the latents.
        cell_pixels: Side of a latent cell in pixels.
        has_frames: Whether latents have an axis of time.
    """
    made = getattr(vae, "latent_channels", channels)
    wanted = 3 if has_frames else 2
    dimensions = getattr(vae, "latent_dim", wanted)
    if dimensions != wanted:
        return f"latents of {made} channels for {DIMENSIONS.get(dimensions, 'something else')}"
    if made != channels:
        return f"latents of {made} channels"
    compression = getattr(vae, "spacial_compression_encode", None)
    pixels = compression() if compression else cell_pixels
    if pixels == cell_pixels:
        return None
    return f"latents of one cell for {pixels} x {pixels} px, not {cell_pixels} x {cell_pixels}"


def check_controls(prompts: Iterable[Any], name: str, picture: PictureModel) -> None:
    """Raises a ValueError if a ControlNet that encodes its hint has no VAE for it, or one that does not fit."""
    for prompt in prompts:
        for control in controls_of(prompt):
            space = getattr(control, "latent_format", None)
            if space is None:
                continue
            if control.vae is None:
                raise ValueError(f"a ControlNet in {name} has no vae; connect the model's VAE where it is applied.")
            has_frames = getattr(space, "latent_dimensions", 2) == 3
            found = misfit(control.vae, space.latent_channels, picture.units.latent_pixels, has_frames)
            if found:
                raise ValueError(
                    f"the vae of a ControlNet in {name} makes {found}, but it takes latents of "
                    f"{space.latent_channels} channels; connect the model's VAE where it is applied."
                )


def check_references(prompts: Iterable[Any], name: str, picture: PictureModel) -> None:
    """Raises a ValueError if a reference latent is none of this model's."""
    ranks, channels = ((4, 5), picture.channels) if picture.units.has_frames else ((4,), picture.channels)
    shape = "(batch, {}, 1, height, width)" if picture.units.has_frames else "(batch, {}, height, width)"
    for prompt in prompts:
        for latent in prompt[1].get("reference_latents") or ():
            if isinstance(latent, Tensor) and (latent.ndim not in ranks or latent.shape[1] != channels):
                raise ValueError(
                    f"a reference latent in {name} has the shape {tuple(latent.shape)}; expected "
                    f"{shape.format(channels)}: encode the reference with the VAE that belongs to {picture.name}."
                )


def check_latent(latent: Tensor, batch: int, stage: Stage, picture: PictureModel) -> None:
    """Check what a VAE made, which may be another pack's and say nothing about itself.

    Args:
        latent: Of the stage's padded frame.
        batch: Pictures.

    Raises:
        ValueError: It is no latent (batch, C, h, w), or (batch, C, 1, h, w), of the model, or has NaN.
    """
    wanted = stage.units.latent_shape(stage.grid, picture.channels, batch)
    if tuple(latent.shape) == wanted:
        check_finite(latent, f"the latent that vae made in stage {stage.number}")
        return
    if latent.ndim == len(wanted) == 5 and latent.shape[2] > 1:
        raise ValueError(
            f"vae made a latent of {latent.shape[2]} frames, but CLEAR Upscale enlarges single pictures, of 1 frame; "
            f"{connect(picture)}"
        )
    raise ValueError(
        f"vae made a latent of the shape {tuple(latent.shape)}, but the model takes {wanted} for this picture; "
        f"{connect(picture)}"
    )
