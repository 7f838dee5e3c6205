"""Tiny models of every family that can have windows, and each family's order of tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .flux import TINY
from .relatives import CHROMA
from .test_only_models import KINDS, OTHERS, TinyKind
from .test_only_models.configs import FLUX2, TEXT, WAN22, Z_IMAGE

HEADS, WIDTH = 2, 256

KREA2 = {
    "image_model": "krea2",
    "features": WIDTH,
    "channels": 16,
    "patch": 2,
    "layers": 2,
    "heads": 4,
    "kvheads": 2,
    "txtlayers": 2,
    "txtdim": 32,
    "txtheads": 2,
    "txtkvheads": 1,
}

LUMINA2 = {
    **{name: value for name, value in Z_IMAGE.items() if name not in ("pad_tokens_multiple", "z_image_modulation")},
    "axes_dims": [32, 48, 48],
    "rope_theta": 10000.0,
    "time_scale": 1.0,
    "ffn_dim_multiplier": 1.0,
}

KANDINSKY5 = {
    "image_model": "kandinsky5",
    "model_dim": WIDTH,
    "ff_dim": 512,
    "in_visual_dim": 16,
    "out_visual_dim": 16,
    "in_text_dim": TEXT,
    "in_text_dim2": 32,
    "time_dim": 64,
    "visual_embed_dim": 64,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
    "axes_dims": (32, 48, 48),
    "rope_scale_factor": (1.0, 2.0, 2.0),
}

OVIS = {**TINY, "vec_in_dim": None, "guidance_embed": False, "yak_mlp": True, "txt_norm": True, "txt_ids_dims": [1, 2]}

LONGCAT = {**TINY, "vec_in_dim": None, "guidance_embed": False, "txt_ids_dims": [1, 2]}

WAN21 = {**WAN22, "in_dim": 16, "out_dim": 16, "num_layers": 2}

HIDREAM = {
    "image_model": "hidream",
    "attention_head_dim": 128,
    "axes_dims_rope": [64, 32, 32],
    "caption_channels": [TEXT, TEXT],
    "max_resolution": [128, 128],
    "in_channels": 16,
    "out_channels": 16,
    "llama_layers": [0, 1, 2],
    "num_attention_heads": HEADS,
    "num_routed_experts": 2,
    "num_activated_experts": 1,
    "num_layers": 1,
    "num_single_layers": 2,
    "patch_size": 2,
    "text_emb_dim": 32,
}


@dataclass(frozen=True)
class TinyFamily:
    """A tiny model, and where the image lies in its sequences.

    Attributes:
        kind: The model.
        cells: Latent cells of a token.
        attentions: Path of a block's self-attention from the diffusion model, "*" for the index; in order of depth.
        before: Tokens before the image from (length, image tokens, reference tokens).
        references: Conditioning that brings reference latents of these sizes; None if the family takes none.
        extra: What a prompt has beside.
    """

    kind: TinyKind
    cells: int
    attentions: tuple[str, ...]
    before: Callable[[int, int, int], int]
    references: dict[str, Any] | None = None
    extra: Callable[[torch.Generator], dict[str, Any]] = field(default=lambda generator: {})

    def noise(self, grid: tuple[int, int], batch: int = 1, frames: int = 1, odd: int = 0, seed: int = 1) -> Tensor:
        """A latent of a grid of tokens; ``odd`` cells are cut off both sides."""
        height, width = (side * self.cells - odd for side in grid)
        time = (frames,) if self.kind.has_frames else ()
        shape = (batch, self.kind.channels, *time, height, width)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def prompt(
        self, tokens: int = 7, seed: int = 2, references: tuple[tuple[int, int], ...] = (), **extra: Any
    ) -> list:
        """A conditioning, with reference latents of grids of tokens."""
        generator = torch.Generator().manual_seed(seed)
        context = torch.randn(1, tokens, TEXT, generator=generator)
        values = {"pooled_output": torch.randn(1, 32, generator=generator), "guidance": 3.5}
        values |= self.extra(generator) | extra
        if references:
            latents = [self.noise(grid, seed=9 + index) for index, grid in enumerate(references)]
            values |= {"reference_latents": latents, **(self.references or {})}
        return [[context, values]]

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        return -(-x.shape[-2] // self.cells), -(-x.shape[-1] // self.cells)

    def modules(self, model: Any) -> list[Any]:
        """The self-attentions, in order of depth."""
        found = []
        for path in self.attentions:
            stem, _, rest = path.partition(".*")
            for block in model.get_submodule(stem):
                found.append(block.get_submodule(rest[1:]) if rest else block)
        return found


def text_first(length: int, image: int, references: int) -> int:
    return length - image - references


def image_first(length: int, image: int, references: int) -> int:
    return 0


def hunyuan(length: int, image: int, references: int) -> int:
    """Until 0.9 the host put HunyuanImage's picture before its text."""
    from comfyui_version import __version__

    return 0 if __version__.startswith("0.9.") else length - image


def padded(length: int, image: int, references: int) -> int:
    """Z-Image fills the image up to a multiple of 32 tokens; references stand before it."""
    return length - image - -image % 32


def llama(generator: torch.Generator) -> dict[str, Any]:
    return {"conditioning_llama3": torch.randn(1, 3, 5, TEXT, generator=generator)}


FLUX_BLOCKS = ("double_blocks.*", "single_blocks.*")

FAMILIES = {
    "FLUX.1": TinyFamily(
        TinyKind("Flux", {**TINY, "txt_ids_dims": []}, 16, 8, 16), 2, FLUX_BLOCKS, text_first, references={}
    ),
    "Chroma": TinyFamily(TinyKind("Chroma", CHROMA, 16, 8, 16), 2, FLUX_BLOCKS, text_first),
    "Ovis-Image": TinyFamily(TinyKind("Flux", OVIS, 16, 8, 16), 2, FLUX_BLOCKS, text_first),
    "LongCat-Image": TinyFamily(TinyKind("LongCatImage", LONGCAT, 16, 8, 16), 2, FLUX_BLOCKS, text_first),
    "FLUX.2 dev": TinyFamily(
        TinyKind("Flux2", {**FLUX2, "guidance_embed": True}, 128, 16, 16), 1, FLUX_BLOCKS, text_first, references={}
    ),
    "FLUX.2 klein": TinyFamily(KINDS["FLUX.2"], 1, FLUX_BLOCKS, text_first, references={}),
    "Krea 2": TinyFamily(
        TinyKind("Krea2", KREA2, 16, 8, 16, has_frames=True),
        2,
        ("blocks.*.attn",),
        text_first,
        references={"reference_latents_method": "index"},
    ),
    "Chroma Radiance": TinyFamily(OTHERS["Chroma Radiance"], 16, FLUX_BLOCKS, text_first),
    "Qwen-Image": TinyFamily(KINDS["Qwen-Image"], 2, ("transformer_blocks.*.attn",), text_first, references={}),
    "Z-Image": TinyFamily(KINDS["Z-Image"], 2, ("layers.*.attention",), padded, references={}),
    "Lumina 2": TinyFamily(TinyKind("Lumina2", LUMINA2, 16, 8, 16), 2, ("layers.*.attention",), text_first),
    "SD3.5": TinyFamily(KINDS["SD3.5"], 2, ("joint_blocks.*",), text_first),
    "HunyuanImage 2.1": TinyFamily(OTHERS["HunyuanImage 2.1"], 1, FLUX_BLOCKS, hunyuan),
    "Kandinsky 5 Image": TinyFamily(
        TinyKind("Kandinsky5Image", KANDINSKY5, 16, 8, 16),
        2,
        ("visual_transformer_blocks.*.self_attention",),
        image_first,
    ),
    "Wan": TinyFamily(
        TinyKind("WAN21_T2V", WAN21, 16, 8, 16, has_frames=True), 2, ("blocks.*.self_attn",), image_first
    ),
    "Wan 2.2 5B": TinyFamily(
        TinyKind("WAN22_T2V", {**WAN22, "num_layers": 2}, 48, 16, 32, has_frames=True),
        2,
        ("blocks.*.self_attn",),
        image_first,
    ),
    "HiDream-I1": TinyFamily(
        TinyKind("HiDream", HIDREAM, 16, 8, 16),
        2,
        ("double_stream_blocks.*", "single_stream_blocks.*"),
        image_first,
        extra=llama,
    ),
}
