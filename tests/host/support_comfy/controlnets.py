"""Small FLUX ControlNets as files in the published layouts, and their dense oracle."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .flux import TINY, fill_weights

DEPTH = {"depth": 2, "depth_single_blocks": 1}

MODES = 3


def random_control_model(seed: int, **layout: Any) -> Any:
    """The host's ControlNetFlux of :data:`TINY`'s size with random weights."""
    import comfy.ops
    from comfy.ldm.flux.controlnet import ControlNetFlux
    from comfy.ldm.flux.model import FluxParams

    config = {**TINY, **DEPTH}
    del config["image_model"]
    if "txt_ids_dims" in FluxParams.__dataclass_fields__:
        config["txt_ids_dims"] = []
    model = ControlNetFlux(
        operations=comfy.ops.disable_weight_init, dtype=torch.float32, device=torch.device("cpu"), **config, **layout
    )
    fill_weights(model, seed)
    return model


def write_xlabs_file(path: Path, seed: int = 0) -> Path:
    """A ControlNet that takes pixels, in the published names of XLabs' files."""
    weights = random_control_model(seed).state_dict()
    save_file(
        {name.replace("_norm.weight", "_norm.scale"): weight.contiguous() for name, weight in weights.items()}, path
    )
    return path


def write_union_file(path: Path, seed: int = 0) -> Path:
    """A Union ControlNet that takes latents, in the diffusers names of InstantX's and Shakker's files."""
    return write_latent_file(path, seed, num_union_modes=MODES, control_latent_channels=16)


def write_inpaint_file(path: Path, seed: int = 0) -> Path:
    """A ControlNet that takes latents and a mask, as Alimama's file does."""
    return write_latent_file(path, seed, control_latent_channels=17)


def write_latent_file(path: Path, seed: int, **layout: Any) -> Path:
    import comfy.utils

    model = random_control_model(seed, latent_input=True, **layout)
    weights = model.state_dict()
    table = comfy.utils.flux_to_diffusers({**DEPTH, "hidden_size": TINY["hidden_size"]})
    out = {}
    for name, place in table.items():
        key, part = (place, None) if isinstance(place, str) else place[:2]
        if key in weights:
            out[name] = (weights[key] if part is None else weights[key].narrow(*part)).clone()
    out |= {name: weight.clone() for name, weight in weights.items() if name.startswith("controlnet_")}
    save_file(out, path)
    return path


@contextmanager
def oracle_control(
    masks: dict[int, Tensor], scale: float | None = None, ntk: float = 1.0, offset: tuple[int, int] = (0, 0)
) -> Iterator[None]:
    """Inside, every ControlNetFlux attends as the method says, by a mask written out, in float64.

    Args:
        masks: bool (L, L) by the length L of a sequence, True where a key is seen.
        scale: Factor on the products of queries and keys; None is the plain one.
        ntk: Factor on the base of the rotary embedding.
        offset: (rows, columns) added to the positions of image tokens.
    """
    from comfy.ldm.flux import layers
    from comfy.ldm.flux.controlnet import ControlNetFlux
    from comfy.ldm.flux.math import apply_rope

    def attend(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, **_: Any) -> Tensor:
        q, k = apply_rope(q, k, pe)
        factor = q.shape[-1] ** -0.5 if scale is None else scale
        scores = q.double() @ k.double().transpose(-1, -2) * factor
        weights = scores.masked_fill(~masks[q.shape[2]], float("-inf")).softmax(dim=-1)
        return (weights @ v.double()).to(q.dtype).transpose(1, 2).flatten(2)

    stock_attention, stock_forward = layers.attention, ControlNetFlux.forward_orig

    def forward_orig(self: Any, img: Tensor, img_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        embedder, own_theta = self.pe_embedder, self.pe_embedder.theta
        layers.attention, embedder.theta = attend, own_theta * ntk
        try:
            return stock_forward(self, img, img_ids + torch.tensor([0.0, *offset]), *args, **kwargs)
        finally:
            layers.attention, embedder.theta = stock_attention, own_theta

    ControlNetFlux.forward_orig = forward_orig
    try:
        yield
    finally:
        ControlNetFlux.forward_orig = stock_forward
