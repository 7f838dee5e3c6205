"""FLUX's position embedder with an NTK factor that every call of the model can set anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from comfy.ldm.flux.layers import EmbedND
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ....clear_core.rope import ntk_theta

KEY = "diffusion_model.pe_embedder"

# The embedder's forward is given token ids alone, and one module serves frames of every size, in several threads.
_factor: ContextVar[float] = ContextVar("clear_ntk_factor", default=1.0)


@contextmanager
def ntk_factor(factor: float) -> Iterator[None]:
    """Let :class:`NTKEmbedder` use ``factor`` inside."""
    token = _factor.set(factor)
    try:
        yield
    finally:
        _factor.reset(token)


class NTKEmbedder(torch.nn.Module):
    """Embeds positions as ``base`` does, with its theta multiplied by the factor of the running call.

    Source: ``comfy.ldm.flux.layers.EmbedND``; installed as an object patch, which follows clones and is taken off
    by the host.
    """

    def __init__(self, base: EmbedND):
        super().__init__()
        self.base = base
        # For nodes that read them off a model in memory to make an embedder of their own (DyPE).
        self.dim, self.theta, self.axes_dim = base.dim, base.theta, base.axes_dim

    # Compiled models keep the first value they see of anything that is not a tensor.
    @torch.compiler.disable
    def forward(self, ids: Tensor) -> Tensor:
        """(B, tokens, axes) ids to (B, 1, tokens, D / 2, 2, 2) rotations."""
        factor = _factor.get()
        if factor == 1.0:
            return self.base(ids)
        return EmbedND(self.base.dim, ntk_theta(self.base.theta, factor), self.base.axes_dim)(ids)


def install_embedder(model: ModelPatcher) -> None:
    """Put :class:`NTKEmbedder` on a clone, unless another pack's embedder (DyPE) is there: that one is kept."""
    current = model.get_model_object(KEY)
    if type(current) is EmbedND:
        model.add_object_patch(KEY, NTKEmbedder(current))


def foreign_embedder(diffusion_model: torch.nn.Module) -> str | None:
    """Class name of a position embedder that ignores our NTK factor, or None."""
    current = getattr(diffusion_model, "pe_embedder", None)
    return None if isinstance(current, NTKEmbedder) else type(current).__name__
