"""Is this model a FLUX.1, and what shape has it?"""

from __future__ import annotations

from dataclasses import dataclass

from comfy.model_patcher import ModelPatcher


@dataclass(frozen=True)
class FluxShape:
    """What CLEAR needs to know of a FLUX.1 model.

    Attributes:
        width: Hidden size (FLUX.1: 3072).
        num_double: Double blocks (19).
        num_single: Single blocks (38).
    """

    width: int
    num_double: int
    num_single: int


def flux_shape(model: ModelPatcher) -> FluxShape:
    """The shape of a FLUX.1 model: dev, schnell, Krea, Kontext, Fill, Canny, Depth, and fine-tunes of any size.

    Raises:
        ValueError: It is another model; the sentence says which.
    """
    config = getattr(getattr(model.model, "model_config", None), "unet_config", {})
    kind = config.get("image_model") or type(model.model).__name__
    diffusion_model = getattr(model.model, "diffusion_model", None)
    if kind != "flux":
        raise ValueError(f"the model is {kind!r}, but CLEAR works on FLUX.1 models only (dev, schnell, Krea, Kontext, "
                         "Fill and their fine-tunes); connect one of those.")
    if config.get("patch_size", 2) != 2:
        raise ValueError(f"the model's patch size is {config['patch_size']}, but CLEAR works on FLUX.1 models with "
                         "patch size 2; connect one of those.")
    if not hasattr(diffusion_model, "double_blocks") or not hasattr(diffusion_model, "single_blocks"):
        raise ValueError(f"the FLUX model is a {type(diffusion_model).__name__}, which computes attention in its own "
                         "way (Nunchaku does), so that CLEAR cannot reach it; load FLUX with the Load Diffusion Model "
                         "node or a GGUF loader.")
    return FluxShape(config["hidden_size"], config["depth"], config["depth_single_blocks"])
