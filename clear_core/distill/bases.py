"""The frozen base in fewer bits: fp8 by torchao, nf4 by bitsandbytes. Both are imported where they are used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..weights.naming import DIFFUSERS, STREAMS
from .layers import TrainedLayer
from .pair import Pair


def quantise(pair: Pair, base: str, keep: bool = True) -> None:
    """Stores the linear layers of all blocks in fewer bits; the trained parts stay float32.

    The teacher is then the quantised model. Norms, embedders and the last layer keep their precision.

    Args:
        pair: Before it is prepared for several processes.
        base: Of :data:`.config.BASES`. "plain" changes nothing; nf4 is arXiv 2305.14314.
        keep: Whether the model's own trained weights are copied to the CPU, for merged and delta files.

    Raises:
        ImportError: The library for it is missing.
    """
    if base == "plain":
        return
    change = _fp8() if base == "fp8" else _nf4()
    if keep:
        pair.keep_originals()
    for module, name, linear in list(_linears(pair.transformer)):
        setattr(module, name, change(linear))


def _linears(transformer: nn.Module) -> Any:
    """(parent, name, linear layer) of the frozen layers of all blocks."""
    for stream in STREAMS:
        blocks: Any = getattr(transformer, DIFFUSERS.blocks[stream], None)
        for parent in () if blocks is None else blocks.modules():
            for name, child in parent.named_children():
                if isinstance(child, nn.Linear) and not (isinstance(parent, TrainedLayer) and name != "base"):
                    yield parent, name, child


def _fp8() -> Any:
    try:
        from torchao.quantization import Float8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise ImportError("base fp8 needs the package torchao; install it with pip.") from error

    def change(linear: nn.Linear) -> nn.Module:
        quantize_(linear, Float8WeightOnlyConfig())
        return linear.requires_grad_(False)

    return change


def _nf4() -> Any:
    try:
        from bitsandbytes.functional import quantize_4bit
        from bitsandbytes.nn.modules import Linear4bit, Params4bit
    except ImportError as error:
        raise ImportError("base nf4 needs the package bitsandbytes; install it with pip.") from error

    # The library keeps its tables where it is first used, which must not be "meta".
    quantize_4bit(torch.zeros(1, 256), quant_type="nf4", compress_statistics=True)

    class Kept4bit(Linear4bit):
        """As the library's, with two changes.

        It is never in evaluation, where weights on a CPU are repacked in a form without a backward pass; and it gives
        the dtype that it computes in, as other layers do under autocast.
        """

        def train(self, mode: bool = True) -> Kept4bit:
            return super().train(True)

        def forward(self, x: Tensor) -> Tensor:
            # The library gives back the dtype that came in: float32 after a norm under autocast, twice the memory.
            return super().forward(x.to(self.compute_dtype))

    def change(linear: nn.Linear) -> nn.Module:
        weight: Any = linear.weight.detach()
        bias: Any = linear.bias
        small: Any = Kept4bit(
            linear.in_features,
            linear.out_features,
            bias=bias is not None,
            compute_dtype=weight.dtype,
            quant_type="nf4",
            device=torch.device("meta"),
        )
        # Its own constructor would make and throw away a whole random weight.
        make: Any = Params4bit
        # ``to`` quantises, but only if the device is another one.
        small.weight = make(weight, requires_grad=False, quant_type="nf4", module=small)._quantize(weight.device)
        small.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        return small

    return change
