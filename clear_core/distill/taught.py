"""Which attention outputs are compared, and how they are read: docs/training.md says it per family.

The reference compares the blocks whose place among all blocks, double ones first, divides by four, and of these the
single ones (its ``distill.py``). Families without single blocks are taught by every fourth double block, whose image
output is compared.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from torch import Tensor, nn

from ..families import ModelShape
from ..weights.naming import DIFFUSERS, Stream

EVERY = 4

Block = tuple[Stream, int]


def taught_blocks(num_double: int, num_single: int) -> list[Block]:
    """The blocks whose attention is compared.

    A model so small that none of its single blocks is a fourth one has its last single block compared; otherwise the
    third term of the loss would be missing without a word.
    """
    if not num_single:
        return [("double", index) for index in range(0, num_double, EVERY)]
    chosen: list[Block] = [("single", index) for index in range(num_single) if (num_double + index) % EVERY == 0]
    return chosen or [("single", num_single - 1)]


class AttentionTap:
    """Keeps the attention outputs of the taught blocks while it is open.

    Attributes:
        outputs: (B, L, C) or of the image alone (B, N, C), block by block, call after call.
    """

    def __init__(self, model: nn.Module, shape: ModelShape) -> None:
        self.outputs: list[Tensor] = []
        self._width = shape.width
        self._attention: list[Any] = [
            model.get_submodule(f"{DIFFUSERS.blocks[stream]}.{index}.attn")
            for stream, index in taught_blocks(shape.num_double, shape.num_single)
        ]

    def __enter__(self) -> AttentionTap:
        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            # A double block gives (image, text).
            self.outputs.append(output[0] if isinstance(output, tuple) else output)

        def keep_input(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            # FLUX.2's single blocks go on with attention and MLP in one layer, attention first.
            self.outputs.append(args[0][..., : self._width])

        self._hooks = [
            attn.to_out.register_forward_pre_hook(keep_input)
            if hasattr(attn, "to_qkv_mlp_proj")
            else attn.register_forward_hook(keep)
            for attn in self._attention
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
