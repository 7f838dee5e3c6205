"""Blocks and hidden states of a transformer in the host, for what is counted: memory and work.

Source: ``comfy.ldm.flux.model.Flux`` (also of FLUX.2), ``comfy.ldm.chroma.model.Chroma``,
``comfy.ldm.qwen_image.model.QwenImageTransformer2DModel``, ``comfy.ldm.lumina.model.NextDiT``,
``comfy.ldm.modules.diffusionmodules.mmdit.MMDiT``; ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.model_management
from comfy.model_patcher import ModelPatcher

from ....clear_core.memory import Activations
from .family import config_of
from .picture_model import kind_of

Config = dict[str, Any]


@dataclass(frozen=True)
class Transformer:
    """What is counted with.

    Attributes:
        blocks: Number of blocks with attention over text and image.
        activations: Its hidden states.
    """

    blocks: int
    activations: Activations


def transformer_of(model: ModelPatcher) -> Transformer | None:
    """The blocks of a model; None for one whose blocks are not known here."""
    read = READERS.get(kind_of(model) or "")
    if read is None:
        return None
    size = comfy.model_management.dtype_size(model.model.manual_cast_dtype or model.model.get_dtype())
    return read(model.model.diffusion_model, config_of(model), size)


def activations_of(model: ModelPatcher) -> Activations:
    """Shape of the hidden states of a model whose blocks are known.

    Raises:
        ValueError: They are not.
    """
    transformer = transformer_of(model)
    if transformer is None:
        raise ValueError("the model's blocks are not known; use the host's estimate of its memory.")
    return transformer.activations


def _flux(inner: Any, config: Config, size: int) -> Transformer:
    return Transformer(
        config["depth"] + config["depth_single_blocks"],
        Activations(
            config["hidden_size"],
            config.get("mlp_ratio", 4.0),
            size,
            config.get("context_in_dim", Activations.text_width),
            bool(config.get("yak_mlp") or config.get("mlp_silu_act")),
        ),
    )


def _qwen_image(inner: Any, config: Config, size: int) -> Transformer:
    shape = Activations(inner.inner_dim, 4.0, size, inner.txt_in.in_features, single_blocks=False, more=2)
    return Transformer(len(inner.transformer_blocks), shape)


def _lumina(inner: Any, config: Config, size: int) -> Transformer:
    ratio = inner.layers[0].feed_forward.w1.out_features / inner.dim
    text = config.get("cap_feat_dim", Activations.text_width)
    shape = Activations(inner.dim, ratio, size, text, gated=True, single_blocks=False)
    # The refiners of the noise run over the whole picture too.
    return Transformer(len(inner.layers) + len(inner.noise_refiner), shape)


def _sd3(inner: Any, config: Config, size: int) -> Transformer:
    # Medium's blocks attend a second time, to the image alone, with q, k and v of their own.
    more = 16 if inner.x_block_self_attn_layers else 9
    shape = Activations(inner.hidden_size, config.get("mlp_ratio", 4.0), size, single_blocks=False, more=more)
    return Transformer(len(inner.joint_blocks), shape)


READERS: dict[str, Callable[[Any, Config, int], Transformer]] = {
    "flux": _flux,
    "chroma": _flux,
    "flux2": _flux,
    "qwen_image": _qwen_image,
    "lumina2": _lumina,
    "sd3": _sd3,
}
"""By the names of ``PICTURE_KINDS``."""
