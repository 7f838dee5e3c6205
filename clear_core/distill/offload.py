"""Block-wise offload: the frozen weights of the blocks stay on the CPU, and each block's come to the card to be used.

With recomputed activations a block's weights are on the card while it runs and while its gradients are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..weights.naming import DIFFUSERS, STREAMS

Entry = tuple[nn.Module, str, nn.Parameter]
"""A module, the name of a parameter that it holds itself, and the parameter."""


class BlockOffload:
    """Hooks that bring the frozen weights of one block to a device for each of its calls.

    The weights on the device are other parameters than those on the CPU: autograd may keep them for the backward pass,
    where one whose data moved away would fail.

    Args:
        block: The block; its trained parameters are on the device and stay there.
        device: Where it runs.
    """

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        self.device = device
        self._held = [entry for entry in own_parameters(block) if not entry[2].requires_grad]
        for _, _, parameter in self._held:
            if device.type == "meta":
                continue  # Nothing to move.
            data = parameter.data.to("cpu")
            parameter.data = data.pin_memory() if device.type == "cuda" and type(data) is Tensor else data
        block.register_forward_pre_hook(self._bring)
        block.register_forward_hook(self._take_back, always_call=True)

    def _bring(self, _block: nn.Module, _args: Any) -> None:
        for module, name, parameter in self._held:
            there = parameter.data.to(self.device, non_blocking=True, copy=True)
            setattr(module, name, _like(parameter, there))

    def _take_back(self, _block: nn.Module, _args: Any, _output: Any) -> None:
        for module, name, parameter in self._held:
            setattr(module, name, parameter)


def own_parameters(block: nn.Module) -> Iterator[Entry]:
    """Every parameter with the module that holds it."""
    for module in block.modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield module, name, parameter


def _like(parameter: nn.Parameter, data: Tensor) -> nn.Parameter:
    """A parameter of the same kind with other data; those of bitsandbytes carry their scales beside the data."""
    if getattr(parameter, "quant_state", None) is None:
        return nn.Parameter(data, requires_grad=False)
    moved: Any = parameter.to(data.device)
    return moved


def offload_blocks(transformer: nn.Module, device: torch.device) -> list[nn.Parameter]:
    """Offloads all blocks of a transformer; everything else goes to the device.

    Returns:
        What stays on the CPU.
    """
    blocks = [block for stream in STREAMS for block in getattr(transformer, DIFFUSERS.blocks[stream], nn.ModuleList())]
    frozen = [parameter for block in blocks for parameter in block.parameters() if not parameter.requires_grad]
    inside = {id(parameter) for parameter in frozen}
    for parameter in transformer.parameters():
        if id(parameter) not in inside:
            parameter.data = parameter.data.to(device)
    for buffer in transformer.buffers():
        buffer.data = buffer.data.to(device)
    for block in blocks:
        BlockOffload(block, device)
    return frozen
