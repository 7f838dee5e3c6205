"""FLUX's blocks computed a chunk of tokens at a time: equal up to rounding, with a lower peak of memory.

Source: ``comfy.ldm.flux.layers.DoubleStreamBlock`` and ``SingleStreamBlock``, ComfyUI 0.9.0 to 0.33.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from comfy.ldm.flux.layers import DoubleStreamBlock, SingleStreamBlock, apply_mod
from comfy.ldm.flux.math import apply_rope, attention
from comfy.model_management import throw_exception_if_processing_interrupted
from torch import Tensor, nn

FORWARDS = {kind: kind.forward for kind in (DoubleStreamBlock, SingleStreamBlock)}


def own_forward(block: nn.Module) -> Any:
    """The ``forward`` that was set on a block itself, or None."""
    return vars(block).get("forward")


def is_plain(block: nn.Module, set_forward: Any = None) -> bool:
    """Whether a block is FLUX.1's and the host's, with ``set_forward`` on itself.

    Newer models have variants under the same name, and third-party packs replace blocks by a class or a ``forward`` of
    their own (NAG) or add hooks; all these are left to themselves.
    """
    forward = FORWARDS.get(type(block))
    if forward is None or type(block).forward is not forward:
        return False
    # The host takes a patched ``forward`` back by setting the class's own on the block.
    if set_forward is not None and getattr(set_forward, "__func__", None) is not forward:
        return False
    if forward.__module__ != type(block).__module__:  # Replaced before this pack was loaded.
        return False
    if vars(block)["_forward_hooks"] or vars(block)["_forward_pre_hooks"]:
        return False
    if isinstance(block, SingleStreamBlock):
        return bool(block.modulation) and not getattr(block, "yak_mlp", False) and isinstance(block.mlp_act, nn.GELU)
    if isinstance(block, DoubleStreamBlock):
        return (
            getattr(block, "modulation", True)
            and not getattr(block, "flipped_img_txt", False)
            and isinstance(block.img_mlp, nn.Sequential)
        )
    return False


def options_of(args: dict[str, Any]) -> dict[str, Any]:
    """The options of the call; third-party forwards (TeaCache, PuLID) do not pass them to blocks."""
    return args.get("transformer_options") or {}


def parts_of(tokens: int, chunk: int) -> Iterator[slice]:
    """Slices of at most ``chunk`` tokens, with an interrupt check before each."""
    for start in range(0, tokens, chunk):
        throw_exception_if_processing_interrupted()
        yield slice(start, min(start + chunk, tokens))


class Projected:
    """q, k and v of a whole sequence, (B, heads, L, D), filled chunk by chunk."""

    def __init__(self, like: Tensor, heads: int, tokens: int):
        shape = (like.shape[0], heads, tokens, like.shape[-1] // heads)
        self.q, self.k, self.v = (like.new_empty(shape) for _ in range(3))

    def fill(self, tokens: slice, qkv: Tensor, norm: Callable[..., Any], pe: Tensor | None) -> None:
        """Normalise and rotate (B, n, 3 * width) and write it to these tokens."""
        batch, heads, _, head_dim = self.q.shape
        q, k, v = qkv.view(batch, qkv.shape[1], 3, heads, head_dim).permute(2, 0, 3, 1, 4)
        q, k = norm(q, k, v)
        if pe is not None:
            q, k = apply_rope(q, k, pe[:, :, tokens])
        self.q[:, :, tokens], self.k[:, :, tokens], self.v[:, :, tokens] = q, k, v


@torch.compiler.disable
def run_single_block(block: SingleStreamBlock, args: dict[str, Any], chunk: int) -> dict[str, Tensor]:
    """A single block; ``args`` and result as the host's ``patches_replace`` has them."""
    x, pe, options = args["img"], args["pe"], options_of(args)
    mod, _ = block.modulation(args["vec"])
    width, inner = block.hidden_size, block.mlp_hidden_dim
    tokens = x.shape[1]
    projected = Projected(x, block.num_heads, tokens)
    mlp = x.new_empty(x.shape[0], tokens, inner)
    for part in parts_of(tokens, chunk):
        qkv, hidden = torch.split(
            block.linear1(apply_mod(block.pre_norm(x[:, part]), 1 + mod.scale, mod.shift)), [3 * width, inner], dim=-1
        )
        projected.fill(part, qkv, block.norm, pe)
        mlp[:, part] = block.mlp_act(hidden)
        del qkv, hidden
    attended = attention(
        projected.q, projected.k, projected.v, pe=None, mask=args.get("attn_mask"), transformer_options=options
    )
    del projected
    for part in parts_of(tokens, chunk):
        x[:, part] += apply_mod(block.linear2(torch.cat((attended[:, part], mlp[:, part]), 2)), mod.gate)
    return {"img": without_overflow(x)}


@torch.compiler.disable
def run_double_block(block: DoubleStreamBlock, args: dict[str, Any], chunk: int) -> dict[str, Tensor]:
    """A double block; ``args`` and result as the host's ``patches_replace`` has them."""
    img, txt, pe, options = args["img"], args["txt"], args["pe"], options_of(args)
    streams = [
        (txt, block.txt_mod(args["vec"]), block.txt_norm1, block.txt_attn, block.txt_norm2, block.txt_mlp),
        (img, block.img_mod(args["vec"]), block.img_norm1, block.img_attn, block.img_norm2, block.img_mlp),
    ]
    projected = Projected(img, block.num_heads, txt.shape[1] + img.shape[1])
    offset = 0
    for x, (mod, _), norm, attn, _, _ in streams:
        for part in parts_of(x.shape[1], chunk):
            in_sequence = slice(offset + part.start, offset + part.stop)
            projected.fill(in_sequence, attn.qkv(apply_mod(norm(x[:, part]), 1 + mod.scale, mod.shift)), attn.norm, pe)
        offset += x.shape[1]
    attended = attention(
        projected.q, projected.k, projected.v, pe=None, mask=args.get("attn_mask"), transformer_options=options
    )
    del projected
    offset = 0
    for x, (mod1, mod2), _, attn, norm, mlp in streams:
        for part in parts_of(x.shape[1], chunk):
            in_sequence = slice(offset + part.start, offset + part.stop)
            x[:, part] += apply_mod(attn.proj(attended[:, in_sequence]), mod1.gate)
            x[:, part] += apply_mod(mlp(apply_mod(norm(x[:, part]), 1 + mod2.scale, mod2.shift)), mod2.gate)
        offset += x.shape[1]
    return {"img": img, "txt": without_overflow(txt)}


def without_overflow(x: Tensor) -> Tensor:
    """Hidden states with infinities clipped in fp16, as the host does it."""
    return torch.nan_to_num(x, nan=0.0, posinf=65504, neginf=-65504) if x.dtype == torch.float16 else x
