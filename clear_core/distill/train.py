"""The training loop, on accelerate: one process, several, ZeRO-2 or FSDP by accelerate's own configuration.

Order, noise and learning rate are functions of the seed and the step. So a checkpoint is weights, optimizer state and
a step, and a resumed training gives the result of an uninterrupted one.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..number_checks import check_number
from ..spec import ClearSpec
from ..wording import quoted
from .losses import Losses, distillation_losses
from .samples import Batch, Order, SampleFolder
from .student import make_student, trained_set

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

logger = logging.getLogger(__name__)

OPTIMIZERS = ("adamw", "prodigy")
CHECKPOINT = "checkpoint-"


@dataclass(frozen=True)
class TrainConfig:
    """Hyperparameters of a distillation: with teacher and samples, they determine the result.

    Attributes:
        radius, down_factor: The window.
        steps: Optimizer steps.
        batch: Samples per process and pass.
        accumulation: Passes per optimizer step.
        optimizer: "adamw", or "prodigy" (needs the package prodigyopt; rate 1, as in the reference training).
        rate: Learning rate, constant after ``warm_up`` steps.
        guidance: Guidance scale of teacher and student; ignored by models without the input.
        clip: Largest gradient norm.
        seed: Seed of order and noise.
    """

    radius: int
    down_factor: int = 1
    steps: int = 10_000
    batch: int = 1
    accumulation: int = 1
    optimizer: str = "adamw"
    rate: float = 1e-4
    warm_up: int = 0
    guidance: float = 3.5
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulation"):
            check_number(name, getattr(self, name), 1, whole=True)
        check_number("warm_up", self.warm_up, 0, whole=True)
        check_number("seed", self.seed, whole=True)
        check_number("guidance", self.guidance)
        for name in ("rate", "clip"):
            check_number(name, getattr(self, name), 0, above=True)
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer is {quoted(self.optimizer)}; expected one of {', '.join(OPTIMIZERS)}.")

    @property
    def spec(self) -> ClearSpec:
        """The window."""
        return ClearSpec(self.radius, self.down_factor)

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        return self.rate * min(1.0, (step + 1) / max(self.warm_up, 1))


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
        """One optimizer step; returns this process's mean losses."""
        sums: dict[str, float] = {}
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate_at(self.step)
        for batch in self.passes(self.step):
            with self.accelerator.accumulate(self.student):
                with self.accelerator.autocast():
                    losses: Losses = distillation_losses(
                        self.student, self.teacher, batch.to(self.accelerator.device), self.guidance, self.inner
                    )
                self.accelerator.backward(losses.total)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.student.parameters(), self.config.clip)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name in ("flow", "distill", "attention"):
                sums[name] = sums.get(name, 0.0) + getattr(losses, name).item() / self.config.accumulation
        self.step += 1
        return sums

    def save(self, folder: Path) -> None:
        """Writes a checkpoint, then removes the older ones."""
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
            for old in checkpoints(folder)[:-1]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def resume(self, folder: Path) -> bool:
        """Loads the newest checkpoint; False if there is none."""
        found = checkpoints(folder)
        if not found:
            return False
        self.accelerator.load_state(str(found[-1]), strict=False)
        self.step = int(found[-1].name.removeprefix(CHECKPOINT))
        return True


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob(f"{CHECKPOINT}*") if path.is_dir())


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
            lr=config.rate,
            decouple=True,
            use_bias_correction=True,
            safeguard_warmup=True,
            weight_decay=1e-4,  # pyright: ignore[reportArgumentType]  # prodigyopt annotates it as an integer
        )
    return torch.optim.AdamW(parameters, lr=config.rate, weight_decay=1e-4)


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


def check_config(folder: Path, config: TrainConfig, processes: int, samples: int) -> None:
    """Writes the configuration into a new folder; in an old one, checks that it is the same.

    Raises:
        ValueError: The folder's distillation was begun with another configuration; more steps are allowed.
    """
    path = folder / "training.json"
    mine = asdict(config) | {"processes": processes, "samples": samples}
    if path.exists():
        begun = json.loads(path.read_text())
        for name, value in mine.items():
            if name != "steps" and begun.get(name) != value:
                raise ValueError(
                    f"{folder} holds a distillation begun with {name} {begun.get(name)}, and now it is "
                    f"{value}; go on with {begun.get(name)}, or choose another folder."
                )
    path.write_text(json.dumps(mine, indent=1) + "\n")


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
