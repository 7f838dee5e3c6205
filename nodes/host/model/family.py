"""Which family a model in the host belongs to, and its shape.

Source: ``unet_config`` of ``comfy.supported_models``; ``comfy.ldm``; ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from comfy.model_patcher import ModelPatcher

from ....clear_core.families import FLUX1, LUMINA2, WAN22_5B, ModelShape
from .family_table import HOST_FAMILIES, UNREACHABLE, HostFamily

WAN_CLASS = "WanModel"
"""Of Wan for text and for a first picture. The others (VACE, Camera, HuMo, SCAIL) attend to more than one picture."""

NUNCHAKU = (
    "computes attention in its own way (Nunchaku does), so that CLEAR cannot reach it; load it with the Load Diffusion "
    "Model node or a GGUF loader."
)


def host_family(model: ModelPatcher) -> HostFamily:
    """The family of a model that CLEAR works on.

    FLUX.1 is dev, schnell, Krea, Kontext, Fill, Canny, Depth, and fine-tunes of any size. Models that the host runs as
    FLUX.1 without its pooled text (Ovis-Image, LongCat-Image) have their own names.

    Raises:
        ValueError: It is another model; the sentence says which.
    """
    config, inner, kind = config_of(model), getattr(model.model, "diffusion_model", None), kind_in_table(model.model)
    found = HOST_FAMILIES.get(kind)
    if found is None:
        names = ", ".join(row.family.name for row in HOST_FAMILIES.values())
        why = f" ({UNREACHABLE[kind]})" if kind in UNREACHABLE else ""
        raise ValueError(
            f"the model is {host_name(model)}, and CLEAR has no windows for it{why}; connect one of {names}, or their "
            "fine-tunes."
        )
    if not all(hasattr(inner, name) for name in found.block_lists):
        raise ValueError(f"the {found.family.name} model is a {type(inner).__name__}, which {NUNCHAKU}")
    read = READERS.get(kind)
    found = found if read is None else read(model, found)
    patch = patch_side(inner, config)
    if patch not in (None, found.family.token_cells):
        raise ValueError(
            f"the model's patch size is {patch}, but CLEAR knows {found.family.name} with patch size "
            f"{found.family.token_cells} only; connect such a model."
        )
    return found


def kind_in_table(base: Any) -> str:
    """The key in :data:`HOST_FAMILIES` of a ``BaseModel``; another word if it is none of them."""
    config = getattr(getattr(base, "model_config", None), "unet_config", {})
    return config.get("image_model") or (
        "sd3" if hasattr(getattr(base, "diffusion_model", None), "joint_blocks") else ""
    )


def row_of(base: Any) -> HostFamily | None:
    """The row of a ``BaseModel`` in the table, without any check of the model itself."""
    return HOST_FAMILIES.get(kind_in_table(base))


def patch_side(inner: Any, config: dict[str, Any]) -> int | None:
    """Side of a token in latent cells as a transformer states it."""
    for found in (config.get("patch_size"), getattr(inner, "patch_size", None), getattr(inner, "patch", None)):
        side = found[-1] if isinstance(found, (list, tuple)) and found else found
        if isinstance(side, int) and side > 0:
            return side
    return None


def _read_flux(model: ModelPatcher, found: HostFamily) -> HostFamily:
    config = config_of(model)
    if config.get("vec_in_dim") is not None:
        return found
    name = "Ovis-Image" if config.get("yak_mlp") else host_name(model)
    return replace(found, family=replace(FLUX1, name=name, weights=None, shift=None, hires_shift=None))


def _read_lumina(model: ModelPatcher, found: HostFamily) -> HostFamily:
    is_padded = getattr(model.model.diffusion_model, "pad_tokens_multiple", None)
    return found if is_padded else replace(found, family=LUMINA2, references=None)


def _read_hunyuan(model: ModelPatcher, found: HostFamily) -> HostFamily:
    inner = model.model.diffusion_model
    patch = config_of(model).get("patch_size")
    if not isinstance(patch, (list, tuple)) or len(patch) != 2:
        raise ValueError(
            f"the model is {host_name(model)}, which makes videos, and windows are for single pictures; connect "
            f"{found.family.name}."
        )
    if getattr(inner.double_blocks[0] if len(inner.double_blocks) else None, "flipped_img_txt", False):
        # Until 0.9 the host put the image first.
        return replace(found, attention=replace(found.attention, text="after"))
    return found


def _read_wan(model: ModelPatcher, found: HostFamily) -> HostFamily:
    name = type(model.model.diffusion_model).__name__
    if name != WAN_CLASS:
        raise ValueError(
            f"the model is a {name}, which attends to more than one picture, and windows are for single pictures; "
            "connect Wan for text or for a first picture."
        )
    channels = model.get_model_object("latent_format").latent_channels
    return replace(found, family=WAN22_5B) if channels == 48 else found


READERS: dict[str, Callable[[ModelPatcher, HostFamily], HostFamily]] = {
    "flux": _read_flux,
    "lumina2": _read_lumina,
    "hunyuan_video": _read_hunyuan,
    "wan2.1": _read_wan,
}
"""What else a model of a family has to be asked."""


def model_shape(model: ModelPatcher) -> ModelShape:
    """The family and the blocks of a model.

    Raises:
        ValueError: CLEAR does not work on it; the sentence says which model it is.
    """
    found, inner = host_family(model), model.model.diffusion_model
    double, single = (len(getattr(inner, name)) if name else 0 for name in found.blocks)
    width, head_dim = found.sizes(inner)
    return ModelShape(found.family, double, single, width, head_dim, config_of(model).get("mlp_ratio", 4.0))


def config_of(model: ModelPatcher) -> dict[str, Any]:
    """The host's configuration of a model."""
    return getattr(getattr(model.model, "model_config", None), "unet_config", {})


def host_name(model: ModelPatcher) -> str:
    """What the host calls a model: the name of its class, and its image model where that is another word."""
    kind = config_of(model).get("image_model")
    name = type(getattr(model.model, "model_config", model.model)).__name__
    same = kind is None or kind.replace("_", "").lower() == name.lower()
    return name if same else f"{name} ({kind})"
