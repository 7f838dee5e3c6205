"""Small diffusers models of FLUX.1's relatives, calls of them, and the stock model in windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

import diffusers

from clear_core.integrations.frame import grid_ids

Grid = tuple[int, int]

HEADS, HEAD_DIM, TEXT_WIDTH, CHANNELS = 2, 16, 24, 16
SIZES: dict[str, Any] = {
    "attention_head_dim": HEAD_DIM,
    "num_attention_heads": HEADS,
    "joint_attention_dim": TEXT_WIDTH,
}


@dataclass(frozen=True)
class Relative:
    """One kind of model.

    Attributes:
        transformer: Its class in diffusers.
        config: Of a small one.
        inputs: The inputs of a call that only this kind has: (grid, text tokens, batch, references) to arguments.
        attentions: Attention modules of the small one.
        references: Whether a call may bring reference pictures.
        image_first: Whether the stock model puts the image before the text.
    """

    transformer: str
    config: dict[str, Any]
    inputs: Callable[[Grid, int, int, tuple[Grid, ...]], dict[str, Any]]
    attentions: int
    references: bool = False
    image_first: bool = False

    def build(self, seed: int = 0, **changes: Any) -> Any:
        torch.manual_seed(seed)
        model = getattr(diffusers, self.transformer)(**SIZES | self.config | changes).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith((".to_q.weight", ".to_k.weight", ".to_qkv_mlp_proj.weight")):
                    parameter.mul_(3)  # A softmax far from uniform, so that a wrong key shows.
        return model

    def call(
        self, grid: Grid, text: int = 6, batch: int = 2, references: tuple[Grid, ...] = (), seed: int = 0
    ) -> dict[str, Any]:
        """Inputs of a call."""
        rng = torch.Generator().manual_seed(seed)
        tokens = sum(h * w for h, w in (grid, *references))
        return {
            "hidden_states": torch.randn(batch, tokens, CHANNELS, generator=rng),
            "encoder_hidden_states": torch.randn(batch, text, TEXT_WIDTH, generator=rng),
            "timestep": torch.full((batch,), 0.7),
        } | self.inputs(grid, text, batch, references)


def _flux2(grid: Grid, text: int, batch: int, references: tuple[Grid, ...]) -> dict[str, Any]:
    # As its pipeline has them: integers with a dimension for the batch, references 10 apart, text on the last axis.
    pictures = [grid_ids(each, 10 * index) for index, each in enumerate((grid, *references))]
    image = torch.nn.functional.pad(torch.cat(pictures), (0, 1)).long()
    words = torch.nn.functional.pad(torch.arange(text)[:, None], (3, 0))
    return {
        "img_ids": image.expand(batch, -1, -1),
        "txt_ids": words.expand(batch, -1, -1),
        "guidance": torch.full((batch,), 3.5),
    }


def _chroma(grid: Grid, text: int, batch: int, references: tuple[Grid, ...]) -> dict[str, Any]:
    # Its pipeline puts all text at 0; here each token has a place, so that a wrong one shows.
    return {"img_ids": grid_ids(grid), "txt_ids": torch.arange(text, dtype=torch.float32)[:, None].expand(-1, 3)}


def _qwen(grid: Grid, text: int, batch: int, references: tuple[Grid, ...]) -> dict[str, Any]:
    return {"img_shapes": [[(1, *each) for each in (grid, *references)]] * batch}


def _sd3(grid: Grid, text: int, batch: int, references: tuple[Grid, ...]) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(1)
    return {
        "hidden_states": torch.randn(batch, 4, 2 * grid[0], 2 * grid[1], generator=rng),
        "pooled_projections": torch.randn(batch, 8, generator=rng),
    }


_SD3 = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "caption_projection_dim": HEADS * HEAD_DIM,
    "pooled_projection_dim": 8,
    "pos_embed_max_size": 12,
}
_QWEN = {"in_channels": CHANNELS, "out_channels": 4, "num_layers": 2, "axes_dims_rope": (4, 6, 6)}

RELATIVES: dict[str, Relative] = {
    "Chroma": Relative(
        "ChromaTransformer2DModel",
        {
            "in_channels": CHANNELS,
            "num_layers": 1,
            "num_single_layers": 2,
            "axes_dims_rope": (4, 6, 6),
            "approximator_num_channels": 16,
            "approximator_hidden_dim": 32,
            "approximator_layers": 1,
        },
        _chroma,
        3,
    ),
    "FLUX.2": Relative(
        "Flux2Transformer2DModel",
        {
            "in_channels": CHANNELS,
            "num_layers": 1,
            "num_single_layers": 2,
            "timestep_guidance_channels": 16,
            "axes_dims_rope": (4, 4, 4, 4),
        },
        _flux2,
        3,
        references=True,
    ),
    "Qwen-Image": Relative("QwenImageTransformer2DModel", _QWEN, _qwen, 2, references=True),
    "Qwen-Image-Edit 2511": Relative(
        "QwenImageTransformer2DModel", _QWEN | {"zero_cond_t": True}, _qwen, 2, references=True
    ),
    "SD3": Relative("SD3Transformer2DModel", _SD3, _sd3, 3, image_first=True),
    "SD3.5 Large": Relative("SD3Transformer2DModel", _SD3 | {"qk_norm": "rms_norm"}, _sd3, 3, image_first=True),
    "SD3.5 Medium": Relative(
        "SD3Transformer2DModel",
        _SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
        _sd3,
        5,
        image_first=True,
    ),
}


def written_out_mask(grid: Grid, text: int, reference: int, radius: int, image_first: bool = False) -> Tensor:
    """(L, L) bool: everybody sees everybody, but image tokens see image tokens only within the window.

    The order is text, image, reference; with ``image_first`` image, text.
    """
    image = grid[0] * grid[1]
    mask = torch.ones(2 * (text + image + reference,), dtype=torch.bool)
    start = 0 if image_first else text
    for a in range(image):
        for b in range(image):
            (ya, xa), (yb, xb) = divmod(a, grid[1]), divmod(b, grid[1])
            mask[start + a, start + b] = (ya - yb) ** 2 + (xa - xb) ** 2 < radius**2
    return mask


@contextmanager
def in_windows(relative: Relative, inputs: dict[str, Any], grid: Grid, radius: int) -> Iterator[list[int]]:
    """Stock attention that also masks the pairs outside the windows; gives the lengths of the sequences it met."""
    dense = torch.nn.functional.scaled_dot_product_attention
    image, text = grid[0] * grid[1], inputs["encoder_hidden_states"].shape[1]
    reference = 0 if relative.image_first else inputs["hidden_states"].shape[1] - image
    lengths: list[int] = []

    def windowed(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **others: Any) -> Tensor:
        lengths.append(query.shape[2])
        # SD3.5 Medium's second attention is of the image alone.
        words = 0 if relative.image_first and query.shape[2] == image else text
        mask = written_out_mask(grid, words, reference, radius, relative.image_first)
        if attn_mask is None:
            attn_mask = mask
        elif attn_mask.dtype == torch.bool:
            attn_mask = attn_mask & mask
        else:
            attn_mask = attn_mask.masked_fill(~mask, float("-inf"))
        return dense(query, key, value, attn_mask=attn_mask, **others)

    with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", windowed):
        yield lengths
