"""``python -m clear_core.distill`` in several CPU processes, as ``accelerate launch`` starts it on cards.

accelerate takes FSDP on cards alone: for "fsdp" this script sets what it would set there, on the CPU. DeepSpeed needs
nothing of the kind. A first argument "kill=N" ends every process hard after N steps.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from clear_core.distill import accelerators, train
from clear_core.distill.__main__ import main

ENVIRONMENT = {
    "ddp": {},
    "zero2": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"},
    "zero3": {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
    "fsdp": {"TEST_FSDP": "2"},
    "fsdp1": {"TEST_FSDP": "1"},
}
"""What a launcher sets in the environment, by mode."""


def fsdp_on_cpu(version: int) -> None:
    """FSDP as on cards."""
    from accelerate import DistributedType, FullyShardedDataParallelPlugin

    plain = accelerators.new_accelerator

    def sharded(cpu: bool, **options: Any) -> Any:
        accelerator = plain(cpu, **options)
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=version,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["FluxTransformerBlock", "FluxSingleTransformerBlock"],
            cpu_ram_efficient_loading=False,
        )
        return accelerator

    accelerators.new_accelerator = sharded


def gloo_alone() -> None:
    """DeepSpeed without its own way between processes of one machine, which it compiles when it is first used.

    A test that is killed meanwhile would leave a lock behind, and all later ones wait for it.
    """
    import deepspeed.comm.torch

    deepspeed.comm.torch.build_shm_op = lambda: None


def killed_after(steps: int) -> None:
    """Ends the process as a power cut does, after the step's own work."""
    run_step = train.Distillation.run_step

    def step(self: train.Distillation) -> dict[str, float]:
        if self.step == steps:
            os._exit(9)
        return run_step(self)

    train.Distillation.run_step = step


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[0].startswith("kill="):
        killed_after(int(arguments.pop(0).removeprefix("kill=")))
    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        gloo_alone()
    if "TEST_FSDP" in os.environ:
        fsdp_on_cpu(int(os.environ["TEST_FSDP"]))
    status = main(arguments)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(status)
