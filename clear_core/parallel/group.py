"""How a process that ``torch.distributed.run`` has started joins the others."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ..environment import variable


def join_group() -> torch.device:
    """Joins the default group, by nccl with a card for each process of this machine, else by gloo.

    Returns:
        The card that is this process's own, or the processor.
    """
    cards = torch.cuda.device_count()
    local, needed = int(variable("LOCAL_RANK", "0")), int(variable("LOCAL_WORLD_SIZE", "1"))
    if cards < needed:
        dist.init_process_group("gloo")
        return torch.device("cpu")
    torch.cuda.set_device(local)
    dist.init_process_group("nccl")
    return torch.device("cuda", local)
