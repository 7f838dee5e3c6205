"""The training loop, on accelerate: one process, several, ZeRO-2 or FSDP by accelerate's own configuration.

Order, noise and learning rate are functions of the seed and the step. So a checkpoint is weights, optimizer state and
a step, and a resumed training gives the result of an uninterrupted one.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..number_checks import check_number
from .config import CHECKPOINT, TrainConfig, checkpoints, step_of
from .losses import Losses, distillation_losses
from .samples import Batch, Order, SampleFolder
from .student import make_student, trained_set

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

logger = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints that are kept: the newest may be of a training that has gone wrong."""


@dataclass
class Distillation:
    """A distillation that is set up and can be run, stopped and resumed.

    Attributes:
        student, optimizer: As accelerate wrapped them.
        inner: The student without wrappers.
        step: The next step to run.
    """

    config: TrainConfig
    accelerator: Accelerator
    teacher: FluxTransformer2DModel
    inner: FluxTransformer2DModel
    student: nn.Module
    optimizer: torch.optim.Optimizer
    samples: SampleFolder
    order: Order
    step: int = 0

    @property
    def guidance(self) -> float | None:
        """Guidance scale for the calls; None for models without the input."""
        return self.config.guidance if self.inner.config["guidance_embeds"] else None

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
        sums: dict[str, float] = {}
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate_at(self.step)
        for batch in self.passes(self.step):
            with self.accelerator.accumulate(self.student):
                with self.accelerator.autocast():
                    losses: Losses = distillation_losses(
                        self.student, self.teacher, batch.to(self.accelerator.device), self.guidance, self.inner
                    )
                self._check_finite(losses)
                self.accelerator.backward(losses.total)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.student.parameters(), self.config.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name in ("flow", "distill", "attention"):
                sums[name] = sums.get(name, 0.0) + getattr(losses, name).item() / self.config.accumulation
        self.step += 1
        return sums

    def _check_finite(self, losses: Losses) -> None:
        for name in ("flow", "distill", "attention"):
            value = getattr(losses, name).item()
            if not math.isfinite(value):
                raise ValueError(
                    f"the {name} loss of step {self.step + 1} is {value}; expected a finite number. The checkpoints "
                    "are as they were: go on from the last one with a smaller rate, or in float32."
                )

    def save(self, folder: Path) -> None:
        """Writes a checkpoint, then removes the older ones but the last :data:`KEPT`."""
        accelerator = self.accelerator
        part, whole = folder / "checkpoint.part", folder / f"{CHECKPOINT}{self.step:07d}"
        if accelerator.is_main_process:
            shutil.rmtree(part, ignore_errors=True)
        accelerator.wait_for_everyone()
        accelerator.save_state(str(part))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(whole, ignore_errors=True)
            part.rename(whole)
            for old in checkpoints(folder)[:-KEPT]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def resume(self, folder: Path) -> bool:
        """Loads the newest checkpoint; False if there is none."""
        found = checkpoints(folder)
        if not found:
            return False
        self.accelerator.load_state(str(found[-1]), strict=False)
        self.step = step_of(found[-1])
        return True


def new_optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a distillation.

    Raises:
        ImportError: prodigyopt is not installed.
    """
    if config.optimizer == "prodigy":
        try:
            from prodigyopt import Prodigy
        except ImportError as error:
            raise ImportError("optimizer prodigy needs the package prodigyopt: pip install prodigyopt.") from error
        return Prodigy(
            parameters,
            lr=config.full_rate,
            decouple=True,
            use_bias_correction=True,
            safeguard_warmup=True,
            weight_decay=1e-4,  # pyright: ignore[reportArgumentType]  # prodigyopt annotates it as an integer
        )
    return torch.optim.AdamW(parameters, lr=config.full_rate, weight_decay=1e-4)


def set_up(
    teacher: FluxTransformer2DModel,
    samples: SampleFolder,
    config: TrainConfig,
    accelerator: Accelerator,
    *,
    backend: str = "auto",
    checkpointing: bool = False,
) -> Distillation:
    """Makes the student and prepares it with accelerate.

    Args:
        teacher: Any FLUX.1 transformer; it is frozen and moved to the accelerator's device.
        accelerator: With ``gradient_accumulation_steps`` equal to the configured accumulation.
        backend: As in :func:`clear_core.clear_attention`.
        checkpointing: Whether to recompute activations in the backward pass, for memory.

    Raises:
        ValueError: The accelerator or the samples do not fit.
    """
    if accelerator.gradient_accumulation_steps != config.accumulation:
        raise ValueError(
            f"the accelerator accumulates over {accelerator.gradient_accumulation_steps} passes; expected "
            f"the configured {config.accumulation}."
        )
    samples.check_fits(teacher.config)
    wrapper = accelerator.distributed_type.value
    inner = make_student(teacher, config.spec, backend=backend, share=wrapper in ("NO", "MULTI_GPU", "MULTI_CPU"))
    if checkpointing:
        inner.enable_gradient_checkpointing()
    teacher.to(accelerator.device).eval()
    names = set(trained_set(inner, config.spec))
    parameters = [parameter for name, parameter in inner.named_parameters() if name in names]
    student, optimizer = accelerator.prepare(inner, new_optimizer(config, parameters))

    # Frozen weights are the teacher's; with them every checkpoint would be as large as the model.
    def keep_trained(models: list[nn.Module], weights: list[dict[str, Any]], folder: str) -> None:
        for index, state in enumerate(weights):
            weights[index] = {name: tensor for name, tensor in state.items() if name.removeprefix("module.") in names}

    accelerator.register_save_state_pre_hook(keep_trained)
    order = Order(samples.shapes, config.batch * config.accumulation * accelerator.num_processes, config.seed)
    return Distillation(config, accelerator, teacher, inner, student, optimizer, samples, order)


def distil(
    distillation: Distillation,
    folder: Path,
    *,
    save_every: int = 500,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> None:
    """Runs the remaining steps of a distillation.

    Args:
        folder: Folder of checkpoints; the newest is resumed.
        save_every: Steps between two checkpoints.
        on_step: Called as ``on_step(steps done, losses)``.

    Raises:
        ValueError: ``save_every`` is not a number of steps.
    """
    check_number("save_every", save_every, 1, whole=True)
    folder.mkdir(parents=True, exist_ok=True)
    if distillation.resume(folder):
        logger.info("Resuming after step %d.", distillation.step)
    while distillation.step < distillation.config.steps:
        losses = distillation.run_step()
        if on_step is not None:
            on_step(distillation.step, losses)
        if distillation.step % save_every == 0 or distillation.step == distillation.config.steps:
            distillation.save(folder)
