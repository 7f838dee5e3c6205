"""The accelerate object of a training: one process, several, DeepSpeed or FSDP, as its launcher says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..environment import variable

if TYPE_CHECKING:
    from accelerate import Accelerator


def new_accelerator(cpu: bool, **options: Any) -> Accelerator:
    """An accelerator without mixed precision of its own: the training has its autocast, and trains in float32.

    Args:
        cpu: Whether to use no card even if there is one.
        options: For ``Accelerator``.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    on_cpu = cpu or not torch.cuda.is_available()
    if on_cpu and variable("ACCELERATE_USE_DEEPSPEED").lower() == "true":
        # With ``cpu`` accelerate leaves DeepSpeed out without a word, and without a backend it counts one process.
        return Accelerator(kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")], mixed_precision="no", **options)
    return Accelerator(cpu=cpu, mixed_precision="no", **options)
