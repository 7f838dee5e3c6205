"""The training loop, on accelerate: one process, several, ZeRO-2 or FSDP 2 by accelerate's configuration."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..number_checks import check_number
from . import checkpoint
from .config import TrainConfig, checkpoints, step_of
from .disk import check_space, no_half_folder
from .losses import Losses, distillation_losses
from .pair import Pair
from .samples import Batch, Order, SampleFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger(__name__)

TERMS = ("flow", "distill", "attention")

AGAIN = (
    "The checkpoints are as they were, and the same settings would end here again: choose another folder, and a "
    "smaller rate or float32."
)


@dataclass
class Distillation:
    """A distillation that is set up and can be run, stopped and resumed.

    Attributes:
        pair: Teacher and student.
        student, optimizer: As accelerate wrapped them.
        step: The next step to run.
    """

    config: TrainConfig
    accelerator: Accelerator
    pair: Pair
    student: nn.Module
    optimizer: torch.optim.Optimizer
    samples: SampleFolder
    order: Order
    step: int = 0

    @property
    def guidance(self) -> float:
        """Guidance scale of teacher and student."""
        return self.pair.teaching.scale(self.config.guidance)

    @property
    def is_deepspeed(self) -> bool:
        """Whether DeepSpeed keeps the optimizer's state."""
        return self.accelerator.distributed_type.value == "DEEPSPEED"

    def autocast(self) -> AbstractContextManager[Any]:
        """Products in the frozen weights' precision: bfloat16 for a model of 16 bits."""
        # Ours instead of accelerate's: under DeepSpeed accelerate has none, and float32 weights would meet bfloat16.
        half = self.pair.compute_dtype != torch.float32
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=half)

    def passes(self, step: int) -> Iterator[Batch]:
        """This process's share of the global batch of a step, pass by pass."""
        indices = self.order[step]
        rank, world, size = self.accelerator.process_index, self.accelerator.num_processes, self.config.batch
        for turn in range(self.config.accumulation):
            first = (turn * world + rank) * size
            positions = range(first, first + size)
            yield self.samples.batch(indices[first : first + size], positions, self.config.seed, step)

    def run_step(self) -> dict[str, float]:
        """One optimizer step; returns this process's mean losses.

        Raises:
            ValueError: A loss is not finite. The step changes no weight and no checkpoint.
        """
        sums: dict[str, float] = dict.fromkeys(TERMS, 0.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate_at(self.step)
        for batch in self.passes(self.step):
            with self.accelerator.accumulate(self.student):
                with self.autocast():
                    losses: Losses = distillation_losses(
                        self.pair, batch.to(self.accelerator.device), self.guidance, self.student
                    )
                self._check_finite(losses)
                self.accelerator.backward(losses.total)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.student.parameters(), self.config.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name in TERMS:
                sums[name] += getattr(losses, name).item() / self.config.accumulation
        self.step += 1
        return sums

    def _check_finite(self, losses: Losses) -> None:
        values = torch.stack([getattr(losses, name).detach().float() for name in TERMS])
        # All processes stop together: one alone would leave the others waiting for its gradients.
        values = self.accelerator.reduce(values, "sum")
        assert isinstance(values, torch.Tensor)
        for name, value in zip(TERMS, values.tolist(), strict=True):
            if not math.isfinite(value):
                raise ValueError(
                    f"the {name} loss of step {self.step + 1} is {value}; expected a finite number. {AGAIN}"
                )

    def check_weights(self) -> None:
        """Refuse weights that must not become a checkpoint; every process calls it.

        Raises:
            ValueError: A trained weight is not finite.
        """
        whole = torch.stack([_share_of(weight).isfinite().all() for weight in self.pair.trained().values()]).all()
        # A process may hold a share of the weights alone.
        odd = self.accelerator.reduce((~whole).float(), "sum")
        assert isinstance(odd, torch.Tensor)
        if odd.item():
            raise ValueError(f"the weights are not finite after step {self.step}. {AGAIN}")

    def save(self, folder: Path, error: float | None = None) -> None:
        """Writes a checkpoint, then removes the older ones that are not kept.

        Args:
            error: Its held-out error, if it was judged.
        """
        accelerator, part = self.accelerator, folder / checkpoint.PART
        if accelerator.is_main_process:
            shutil.rmtree(part, ignore_errors=True)
            check_space(folder, self.checkpoint_bytes, f"the files of the checkpoint of step {self.step}")
        accelerator.wait_for_everyone()
        with no_half_folder(part, f"the checkpoint of step {self.step}"):
            part.mkdir(exist_ok=True)
            weights = checkpoint.weights_of(self.pair.trained())
            if self.is_deepspeed:
                accelerator.save_state(str(part / "deepspeed"), exclude_frozen_parameters=True)
                tensors, values = {}, checkpoint.NO_STATE
            else:
                tensors, values = checkpoint.optimizer_state(self.bare_optimizer)
            if accelerator.is_main_process:
                checkpoint.write(part, weights, tensors, values)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            checkpoint.finish(folder, self.step, error)
        accelerator.wait_for_everyone()

    @property
    def bare_optimizer(self) -> Any:
        """The optimizer without accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    @property
    def checkpoint_bytes(self) -> int:
        """Room that the disk needs for one checkpoint."""
        return checkpoint.size_of(self.pair.trained(), self.config.optimizer)

    def resume(self, folder: Path) -> bool:
        """Loads the newest checkpoint; False if there is none.

        Raises:
            ValueError: It is of another training.
        """
        found = checkpoints(folder)
        if not found:
            return False
        weights, tensors, values = checkpoint.read(found[-1])
        trained = self.pair.trained()
        checkpoint.put_weights(trained, weights)
        if self.is_deepspeed:
            self.accelerator.load_state(str(found[-1] / "deepspeed"), load_module_strict=False)
        else:
            checkpoint.put_optimizer_state(self.bare_optimizer, list(trained.values()), tensors, values)
        self.step = step_of(found[-1])
        return True


def _share_of(weight: torch.Tensor) -> torch.Tensor:
    """What this process holds of a weight that may be shared among several."""
    local: Any = getattr(weight, "to_local", None)
    return weight.detach() if local is None else local().detach()


def distil(
    distillation: Distillation,
    folder: Path,
    *,
    save_every: int = 500,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    on_start: Callable[[int], None] | None = None,
    judge: Callable[[int], float | None] | None = None,
) -> None:
    """Runs the remaining steps of a distillation.

    Args:
        folder: Folder of checkpoints; the newest is resumed.
        save_every: Steps between two checkpoints.
        on_step: Called as ``on_step(steps done, losses)``.
        on_start: Called with the steps done so far, after a checkpoint was resumed and before the first step.
        judge: Called with the steps done, before each checkpoint; its held-out error decides which one is the best.

    Raises:
        ValueError: ``save_every`` is not a number of steps, the newest checkpoint is damaged or of another training, or
            a loss or a weight is not finite.
    """
    check_number("save_every", save_every, 1, whole=True)
    folder.mkdir(parents=True, exist_ok=True)
    if distillation.resume(folder):
        logger.info("Resuming after step %d.", distillation.step)
    if on_start is not None:
        on_start(distillation.step)
    while distillation.step < distillation.config.steps:
        losses = distillation.run_step()
        if on_step is not None:
            on_step(distillation.step, losses)
        if distillation.step % save_every == 0 or distillation.step == distillation.config.steps:
            distillation.check_weights()
            distillation.save(folder, judge(distillation.step) if judge is not None else None)
