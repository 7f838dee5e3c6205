"""A step of FLUX: the linear layers of its double and single blocks around each attention, timed."""

from __future__ import annotations

import argparse
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clear_core import ClearSpec, SequenceLayout

from .attention import Attention, attention
from .timing import failure, interleaved, peak_bytes

DOUBLE_BLOCKS, SINGLE_BLOCKS = 19, 38
MLP_RATIO = 4


class DoubleStream(nn.Module):
    """The linear layers of one stream of a double block."""

    def __init__(self, width: int, **kind: Any) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, **kind)
        self.out = nn.Linear(width, width, **kind)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width, **kind), nn.GELU("tanh"), nn.Linear(MLP_RATIO * width, width, **kind)
        )

    def forward(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out(attended)
        return x + self.mlp(x)


class DoubleBlock(nn.Module):
    """The linear layers of FLUX's double block, without norms, positions and modulation."""

    def __init__(self, width: int, heads: int, text: int, **kind: Any) -> None:
        super().__init__()
        self.heads, self.text = heads, text
        self.text_stream, self.image_stream = DoubleStream(width, **kind), DoubleStream(width, **kind)

    def forward(self, x: Tensor, attend: Attention) -> Tensor:
        text, image = self.text_stream, self.image_stream
        sizes = [self.text, x.shape[1] - self.text]
        parts = x.split(sizes, dim=1)
        qkv = torch.cat([text.qkv(parts[0]), image.qkv(parts[1])], dim=1)
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v).transpose(1, 2).flatten(2).split(sizes, dim=1)
        return torch.cat([text(parts[0], attended[0]), image(parts[1], attended[1])], dim=1)


class SingleBlock(nn.Module):
    """The linear layers of FLUX's single block; v is a view with the stride of the whole projection, as in ComfyUI."""

    def __init__(self, width: int, heads: int, **kind: Any) -> None:
        super().__init__()
        self.heads, self.widths = heads, (3 * width, MLP_RATIO * width)
        self.linear1 = nn.Linear(width, sum(self.widths), **kind)
        self.linear2 = nn.Linear(width + MLP_RATIO * width, width, **kind)

    def forward(self, x: Tensor, attend: Attention) -> Tensor:
        qkv, mlp = self.linear1(x).split(self.widths, dim=-1)
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v).transpose(1, 2).flatten(2)
        return x + self.linear2(torch.cat([attended, F.gelu(mlp, approximate="tanh")], dim=2))


def run_blocks(blocks: dict[str, nn.Module], x: Tensor, attend: Attention) -> None:
    """Each block once, on the same input."""
    for block in blocks.values():
        block(x, attend)


def step(
    name: str, layout: SequenceLayout, spec: ClearSpec, runs: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    """Time of 19 double and 38 single blocks: one of each is timed, because all have the same shapes."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    width = options.heads * options.head_dim
    blocks: dict[str, nn.Module] = {
        "double": DoubleBlock(width, options.heads, layout.text, device=device, dtype=dtype),
        "single": SingleBlock(width, options.heads, device=device, dtype=dtype),
    }
    x = torch.randn(1, layout.length, width, device=device, dtype=dtype)
    attentions = {run: attention(run, layout, spec, device) for run in runs}
    skipped: dict[str, str] = {}
    for run, attend in attentions.items():
        reason = failure(partial(run_blocks, blocks, x, attend))
        if reason is not None:
            skipped[run] = reason
    found: dict[str, dict[str, Any]] = {run: {} for run in runs if run not in skipped}
    for kind, block in blocks.items():
        functions = {run: partial(block, x, attentions[run]) for run in found}
        for run, function in functions.items():
            found[run][f"{kind}_peak_bytes"] = peak_bytes(function, device)[1]
        for run, seconds in interleaved(functions, device, options.rounds).items():
            found[run][f"{kind}_ms"] = round(median(seconds) * 1e3, 3)
    for one in found.values():
        one["step_ms"] = round(DOUBLE_BLOCKS * one["double_ms"] + SINGLE_BLOCKS * one["single_ms"], 1)
    return {
        "kind": "step",
        "size": name,
        "grid": list(layout.grid),
        "radius": spec.radius,
        "down_factor": spec.down_factor,
        "runs": found,
        "skipped": skipped,
    }
