"""All attentions of a diffusers transformer, computed by a function of the moment, and given back afterwards."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention import clear_attention
from ...dense_blocks import BlockId, dense_blocks_text
from ...integrations.diffusers import ClearHandle, apply_clear
from ...integrations.diffusers_model import attention_modules
from ...integrations.diffusers_processor import ClearCall
from ...layout import SequenceLayout
from ...spec import ClearSpec


@dataclass(frozen=True)
class AttentionId:
    """One attention of a model.

    Attributes:
        block: The block that it is in.
        second: Whether it is the block's second attention, of the image alone (SD3.5 Medium).
    """

    block: BlockId
    second: bool = False

    @property
    def name(self) -> str:
        """``d0``, ``s3``, and ``d0 image`` for a second attention."""
        return dense_blocks_text([self.block]) + (" image" if self.second else "")


@dataclass(frozen=True, eq=False)
class BlockTokens:
    """Query, key and value of one attention in one call of the model.

    Attributes:
        attention: Whose.
        q, k, v: (1, heads, L, D), text first, then the image row-major, then references; norms and RoPE applied.
        layout: Of the sequence.
        scale: Factor on the query-key products.
    """

    attention: AttentionId
    q: Tensor
    k: Tensor
    v: Tensor
    layout: SequenceLayout
    scale: float

    def dense(self) -> Tensor:
        """(1, heads, L, D): the model's own attention."""
        return F.scaled_dot_product_attention(self.q, self.k, self.v, scale=self.scale)

    def precise(self) -> Tensor:
        """(1, heads, L, D): the model's own attention in float32."""
        q, k, v = self.q.float(), self.k.float(), self.v.float()
        return F.scaled_dot_product_attention(q, k, v, scale=self.scale)

    def windowed(self, spec: ClearSpec) -> Tensor:
        """(1, heads, L, D): attention in windows."""
        grid, reference = self.layout.grid, self.layout.reference
        out = clear_attention(
            self.q, self.k, self.v, grid=grid, spec=spec, scale=self.scale, reference_tokens=reference
        )
        assert isinstance(out, Tensor)  # No log-sum-exp was asked for.
        return out


Attend = Callable[[BlockTokens], Tensor]
"""Attention of one block, (1, heads, L, D)."""


@dataclass(frozen=True, eq=False)
class _Call(ClearCall):
    """One call of the model, for one of its attentions."""

    attention: AttentionId = AttentionId(("double", 0))
    attend_by: Attend = BlockTokens.dense

    def attend(self, weight: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.shape[0] != 1 or self.bias is not None or self.part is not None:
            raise ValueError(
                f"attention was called for a batch of {q.shape[0]}"
                f"{' with a text mask' if self.bias is not None else ''}; locality takes one picture at a time, with "
                "a prompt without padding, on one device."
            )
        layout = self.effective.layout
        # The second attention of a block has no text.
        own = SequenceLayout.of(q.shape[2], layout.grid, layout.reference)
        # Under autocast the norms give another precision than the projection of the values.
        tokens = BlockTokens(self.attention, q.to(v.dtype), k.to(v.dtype), v, own, self.effective.scale)
        with torch.autocast(q.device.type, enabled=False):
            out = self.attend_by(tokens)
        return out.to(v.dtype).transpose(1, 2).flatten(2)


class Attentions:
    """The attentions of a transformer in our hands, until the ``with`` block ends or :meth:`remove` is called.

    They are dense, as the model has them, but within :meth:`by`.

    Args:
        transformer: A diffusers model of a family with windows, before ``torch.compile``.

    Attributes:
        ids: The attentions in the order of the blocks.

    Raises:
        ImportError, TypeError, ValueError: As :func:`clear_core.integrations.diffusers.apply_clear`.
    """

    def __init__(self, transformer: Any) -> None:
        self.ids: list[AttentionId] = []
        self._attend: Attend = BlockTokens.dense
        # The windows of this handle are never used: what it gives is query, key and value of every family alike.
        self._handle: ClearHandle = apply_clear(transformer, ClearSpec(1), ntk_factor=1.0, proportional_attention="off")
        self._hooks: list[Any] = []
        for block, module in attention_modules(transformer):
            attention = AttentionId(block, any(known.block == block for known in self.ids))
            self.ids.append(attention)
            self._hooks.append(module.register_forward_pre_hook(self._told(attention), with_kwargs=True))

    def _told(self, attention: AttentionId) -> Callable[..., Any]:
        """A hook that tells an attention which one it is."""

        def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            call = kwargs["clear_call"]
            known = {field.name: getattr(call, field.name) for field in fields(ClearCall)}
            return args, kwargs | {"clear_call": _Call(**known, attention=attention, attend_by=self._attend)}

        return hook

    @contextmanager
    def by(self, attend: Attend) -> Generator[None]:
        """Every attention is computed by a function until the ``with`` block ends."""
        before, self._attend = self._attend, attend
        try:
            yield
        finally:
            self._attend = before

    def remove(self) -> None:
        """Gives the model its own attention processors back."""
        for hook in self._hooks:
            hook.remove()
        self._handle.remove()

    def __enter__(self) -> Attentions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()
