"""Is this model a FLUX.1 or a relative with the same blocks, and what shape has it?"""

from __future__ import annotations

from dataclasses import dataclass

from comfy.ldm.chroma.model import Chroma
from comfy.model_patcher import ModelPatcher


@dataclass(frozen=True)
class FluxShape:
    """What CLEAR needs to know of a FLUX.1 model.

    Attributes:
        width: Hidden size (FLUX.1: 3072).
        num_double: Double blocks (19).
        num_single: Single blocks (38).
        relative: Name of the model where it is no FLUX.1 but shares its blocks (Chroma), else None.
        takes_references: Whether the model looks at reference latents.
    """

    width: int
    num_double: int
    num_single: int
    relative: str | None = None
    takes_references: bool = True


def flux_shape(model: ModelPatcher) -> FluxShape:
    """The shape of a FLUX.1 model: dev, schnell, Krea, Kontext, Fill, Canny, Depth, and fine-tunes of any size.

    Models that share FLUX.1's blocks and its order of tokens are taken too and named as relatives: Chroma
    (``comfy.ldm.chroma.model``), and those that the host runs as FLUX.1 without its pooled text (Ovis-Image,
    LongCat-Image).

    Raises:
        ValueError: It is another model; the sentence says which.
    """
    config = getattr(getattr(model.model, "model_config", None), "unet_config", {})
    kind = config.get("image_model")
    diffusion_model = getattr(model.model, "diffusion_model", None)
    if kind not in ("flux", "chroma"):
        raise ValueError(
            f"the model is {_name(model, kind)}, but CLEAR works on FLUX.1 models only (dev, schnell, "
            "Krea, Kontext, Fill and their fine-tunes, and Chroma); connect one of those."
        )
    if config.get("patch_size", 2) != 2:
        raise ValueError(
            f"the model's patch size is {config['patch_size']}, but CLEAR works on FLUX.1 models with "
            "patch size 2; connect one of those."
        )
    if not hasattr(diffusion_model, "double_blocks") or not hasattr(diffusion_model, "single_blocks"):
        raise ValueError(
            f"the FLUX model is a {type(diffusion_model).__name__}, which computes attention in its own "
            "way (Nunchaku does), so that CLEAR cannot reach it; load FLUX with the Load Diffusion Model "
            "node or a GGUF loader."
        )
    is_relative = kind == "chroma" or config.get("vec_in_dim") is None
    return FluxShape(
        config["hidden_size"],
        config["depth"],
        config["depth_single_blocks"],
        _relative_name(model, kind, config) if is_relative else None,
        takes_references=not isinstance(diffusion_model, Chroma),
    )


def _relative_name(model: ModelPatcher, kind: str, config: dict) -> str:
    return "Ovis-Image" if config.get("yak_mlp") else _name(model, kind)


def _name(model: ModelPatcher, kind: str | None) -> str:
    """What the host calls a model: the name of its class, and its image model where that is another word."""
    name = type(getattr(model.model, "model_config", model.model)).__name__
    same = kind is None or kind.replace("_", "").lower() == name.lower()
    return name if same else f"{name} ({kind})"
