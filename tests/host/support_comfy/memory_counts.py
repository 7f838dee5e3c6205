"""What a call of a model was planned to take, and what it takes, counted."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from .live_bytes import LiveBytes
from .sampling import conditioning, predict, prepared

SIGMA = 0.6

HELD = 4
"""Hidden states that :func:`attend_as_planned` holds besides its result: as many as are planned for."""


def noise(height: int, width: int) -> torch.Tensor:
    return torch.randn(1, 16, height, width, generator=torch.Generator().manual_seed(1))


def prompt(text: int = 7, width: int = 64, **extra: Any) -> list:
    generator = torch.Generator().manual_seed(2)
    out = conditioning(torch.randn(1, text, width, generator=generator), torch.randn(1, 32, generator=generator))
    out[0][1].update(extra)
    return out


class Planner:
    """The pack's estimate of memory.

    Args:
        pack: The loaded pack.
        clear_node: CLEARAttention as a function.
    """

    def __init__(self, pack: Any, clear_node: Any) -> None:
        self.pack = pack
        self.clear_node = clear_node

    def part(self, name: str) -> Any:
        """A module of nodes/host."""
        return importlib.import_module(f"{self.pack.__name__}.nodes.host.{name}")

    def plan(self, model: Any, *conditionings: list) -> Any:
        """The estimate for all prompts."""
        conds = self.part("model.sequence").sampler_conds(cond for each in conditionings for cond in each)
        return self.part("model.memory_plan").memory_plan(model, conds)

    def clear(self, model: Any, chunk: int | None = 128, **widgets: Any) -> Any:
        """The model with windows, whose blocks work on ``chunk`` tokens at a time."""
        clone = self.clear_node(model, **{"radius": 3, "min_tokens": 0, **widgets})
        self.part("model.memory").MemoryPatch(chunk).install(clone)
        return clone

    def chunked_blocks(self, monkeypatch: pytest.MonkeyPatch) -> list:
        """Blocks that are computed in chunks from now on, in a list that grows."""
        ran, call = [], self.part("model.memory").ChunkedCall
        original = call.run
        monkeypatch.setattr(call, "run", lambda *args: ran.append(args[1]) or original(*args))
        return ran

    def attend_as_planned(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Attention of all kinds that holds what is planned for it and no more."""
        import comfy.ldm.flux.math

        def attend(q: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            batch, heads, tokens, head_dim = q.shape
            _held = [q.new_empty(q.shape) for _ in range(HELD)]
            return q.new_zeros(batch, tokens, heads, head_dim).transpose(1, 2)

        def dense(q: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            return attend(q).transpose(1, 2).flatten(2)

        def optimized(q: Any, k: Any, v: Any, heads: int, transformer_options: Any = None, **rest: Any) -> torch.Tensor:
            override = (transformer_options or {}).get("optimized_attention_override")
            if override is None:
                return dense(q)
            return override(dense, q, k, v, heads, transformer_options=transformer_options, **rest)

        monkeypatch.setattr(self.part("model.attention_override"), "PreparedAttention", prepared(attend))
        monkeypatch.setattr(comfy.ldm.flux.math, "optimized_attention", optimized)


def counted_peak(model: Any, x: torch.Tensor, positive: list) -> int:
    """Most bytes alive in one call of the model, without what was there before."""
    predict(model, noise(8, 8), SIGMA, positive)
    with LiveBytes() as count:
        predict(model, x, SIGMA, positive)
    return count.peak


def tokens_of(x: torch.Tensor) -> int:
    return -(-x.shape[-2] // 2) * -(-x.shape[-1] // 2)
