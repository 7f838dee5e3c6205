"""The host's node "Model Sparse Attention" (BlockSparseAttention, ComfyUI 0.36), imitated where a host has none.

Written by its published rule (ComfyUI, comfy_extras/nodes_sparse_attention.py; pull requests 16072 and 16154), for all
models but the one video model that has a path of its own. The published node computes on cards alone and leaves every
call on a CPU dense; this one does not, so that a test can see what it does beside windows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK, HEAD_SIZE = 64, 128
SLOT = "optimized_attention_override"


def best_blocks(
    q: Tensor, k: Tensor, v: Tensor, tau: float, topk_ratio: float, scale: float | None, **_: Any
) -> Tensor:
    """A stand-in for comfy-kitchen's ``sol_attn``, (B, T, heads, D): blocks chosen by their means, no averages."""
    tokens = q.shape[1]
    q, k, v = (one.transpose(1, 2) for one in (q, k, v))
    padding = (0, 0, 0, -tokens % BLOCK)
    queries, keys = (F.pad(one, padding).unflatten(2, (-1, BLOCK)).mean(3) for one in (q, k))
    scores = queries @ keys.mT
    count = scores.shape[-1]
    if topk_ratio:
        keep = max(1, min(count - 1, round(topk_ratio * count)))
        seen = scores >= scores.topk(keep, dim=-1).values[..., -1:]
    else:
        seen = scores > scores.mean(-1, keepdim=True) + tau * scores.std(-1, keepdim=True)
    places = torch.arange(count)
    seen |= (places[:, None] - places).abs() <= 1
    pairs = seen.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)[..., :tokens, :tokens]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=pairs, scale=scale).transpose(1, 2)


def kernel() -> Callable[..., Tensor]:
    """comfy-kitchen's, which the host brings from 0.2.33 on; else the stand-in."""
    try:
        from comfy_kitchen import sol_attn
    except ImportError:
        return best_blocks
    return sol_attn


class Patch:
    """The node's widgets on one model, and the overrides that it has put there."""

    def __init__(self, tau: float, topk_ratio: float, sigmas: tuple[float, float], min_tokens: int, dense: set[int]):
        self.tau, self.topk_ratio, self.sigmas, self.min_tokens, self.dense = tau, topk_ratio, sigmas, min_tokens, dense
        self.installed: set[Callable[..., Any]] = set()

    def stays_dense(self, options: dict[str, Any], tokens: int) -> bool:
        """Outside of its steps, for short sequences, and in the blocks that are named; a block goes by its index."""
        levels, (first, last) = options.get("sigmas"), self.sigmas
        outside = levels is not None and not last <= float(levels[0]) <= first
        return outside or tokens < self.min_tokens or options.get("block_index") in self.dense

    def install(self, options: dict[str, Any]) -> None:
        """Puts an override on top of the one that is there, unless that is one of this patch."""
        previous = options.get(SLOT)
        if previous not in self.installed:
            options[SLOT] = self.over(previous)
            self.installed.add(options[SLOT])

    def over(self, previous: Callable[..., Any] | None) -> Callable[..., Tensor]:
        def override(
            func: Any, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **kwargs: Any
        ) -> Tensor:
            split = kwargs.get("skip_reshape", False)
            tokens = q.shape[2] if split else q.shape[1]
            tensors = [one.transpose(1, 2) if split else one.unflatten(2, (heads, -1)) for one in (q, k, v)]
            unlike = len({one.shape for one in tensors}) > 1 or tensors[0].shape[3] != HEAD_SIZE
            options = kwargs.get("transformer_options") or {}
            if mask is not None or unlike or self.stays_dense(options, tokens):
                arguments = (q, k, v, heads)
                if previous is None:
                    return func(*arguments, mask=mask, **kwargs)
                return previous(func, *arguments, mask=mask, **kwargs)
            out = kernel()(*tensors, tau=self.tau, topk_ratio=self.topk_ratio, scale=kwargs.get("scale"))
            return out.transpose(1, 2) if kwargs.get("skip_output_reshape") else out.flatten(2)

        return override


class BlockSparseAttention:
    """The node, as far as pictures go: method, steps, dense blocks and shortest sequence."""

    FUNCTION = "execute"

    def execute(
        self,
        model: Any,
        method: str = "sol-attn",
        tau: float = 1.3,
        keep_percent: float = 10.0,
        start_percent: float = 0.2,
        end_percent: float = 1.0,
        dense_blocks: tuple[int, ...] = (),
        min_tokens: int = 12288,
    ) -> tuple[Any]:
        from comfy.patcher_extension import CallbacksMP

        sampling = model.get_model_object("model_sampling")
        sigmas = tuple(float(sampling.percent_to_sigma(percent)) for percent in (start_percent, end_percent))
        ratio = keep_percent / 100 if method == "sla" else 0.0
        patch = Patch(tau, ratio, sigmas, min_tokens, set(dense_blocks))
        model = model.clone()
        patch.install(model.model_options["transformer_options"])
        model.add_callback_with_key(
            CallbacksMP.ON_PREPARE_STATE,
            "block_sparse_attention",
            lambda _patcher, _timestep, options: patch.install(options["transformer_options"]),
        )
        return (model,)


NODE_CLASS_MAPPINGS = {"BlockSparseAttention": BlockSparseAttention}
NODE_DISPLAY_NAME_MAPPINGS = {"BlockSparseAttention": "Model Sparse Attention"}
