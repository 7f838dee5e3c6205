"""Which family a model in the host belongs to, its shape, and the host's names for its parts.

Source: ``unet_config`` of ``comfy.supported_models``; ``comfy.ldm.flux.model.Flux``, ``comfy.ldm.chroma.model.Chroma``
and ``comfy.model_base.Flux.extra_conds``; ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from comfy.model_patcher import ModelPatcher

from ....clear_core.families import CHROMA, FLUX1, Family, ModelShape


@dataclass(frozen=True)
class HostFamily:
    """The host's names for the parts of a family.

    Attributes:
        family: The family.
        blocks: Attributes of the diffusion model that hold the double and the single blocks.
        embedder: Attribute of the diffusion model that holds the position embedder, an ``EmbedND``.
        references: Keyword of ``apply_model`` that holds reference latents; None if the family takes none.
        calls_post_input: Whether its forward calls ``post_input`` patches, and keeps what they return.
    """

    family: Family
    blocks: tuple[str, str] = ("double_blocks", "single_blocks")
    embedder: str = "pe_embedder"
    references: str | None = None
    calls_post_input: bool = False


HOST_FAMILIES = {
    "flux": HostFamily(FLUX1, references="ref_latents", calls_post_input=True),
    "chroma": HostFamily(CHROMA),
}
"""By ``image_model`` in the host's ``unet_config``."""


def host_family(model: ModelPatcher) -> HostFamily:
    """The family of a model that CLEAR works on.

    FLUX.1 is dev, schnell, Krea, Kontext, Fill, Canny, Depth, and fine-tunes of any size. Models that share FLUX.1's
    blocks and its order of tokens are relatives: Chroma, and those that the host runs as FLUX.1 without its pooled text
    (Ovis-Image, LongCat-Image), each under its own name.

    Raises:
        ValueError: It is another model; the sentence says which.
    """
    config = config_of(model)
    kind = config.get("image_model")
    diffusion_model = getattr(model.model, "diffusion_model", None)
    if kind not in HOST_FAMILIES:
        raise ValueError(
            f"the model is {host_name(model)}, but CLEAR works on FLUX.1 models only (dev, schnell, "
            "Krea, Kontext, Fill and their fine-tunes, and Chroma); connect one of those."
        )
    if config.get("patch_size", 2) != HOST_FAMILIES[kind].family.token_cells:
        raise ValueError(
            f"the model's patch size is {config['patch_size']}, but CLEAR works on FLUX.1 models with "
            "patch size 2; connect one of those."
        )
    found = HOST_FAMILIES[kind]
    if not all(hasattr(diffusion_model, name) for name in found.blocks):
        raise ValueError(
            f"the FLUX model is a {type(diffusion_model).__name__}, which computes attention in its own "
            "way (Nunchaku does), so that CLEAR cannot reach it; load FLUX with the Load Diffusion Model "
            "node or a GGUF loader."
        )
    if found.family is FLUX1 and config.get("vec_in_dim") is None:
        name = "Ovis-Image" if config.get("yak_mlp") else host_name(model)
        return replace(found, family=replace(FLUX1, name=name, weights=None, shift=None, hires_shift=None))
    return found


def model_shape(model: ModelPatcher) -> ModelShape:
    """The family and the blocks of a model.

    Raises:
        ValueError: CLEAR does not work on it; the sentence says which model it is.
    """
    family, config = host_family(model).family, config_of(model)
    width = config["hidden_size"]
    return ModelShape(
        family,
        config["depth"],
        config["depth_single_blocks"],
        width,
        width // config["num_heads"],
        config.get("mlp_ratio", 4.0),
    )


def config_of(model: ModelPatcher) -> dict[str, Any]:
    """The host's configuration of a model."""
    return getattr(getattr(model.model, "model_config", None), "unet_config", {})


def host_name(model: ModelPatcher) -> str:
    """What the host calls a model: the name of its class, and its image model where that is another word."""
    kind = config_of(model).get("image_model")
    name = type(getattr(model.model, "model_config", model.model)).__name__
    same = kind is None or kind.replace("_", "").lower() == name.lower()
    return name if same else f"{name} ({kind})"
