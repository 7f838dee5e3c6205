"""What determines a distillation, and the folder that remembers it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..number_checks import check_number
from ..spec import ClearSpec
from ..wording import quoted

RATES = {"adamw": 1e-4, "prodigy": 1.0}
"""The optimizers, and the learning rate of each if none is named. Prodigy's is a factor on the rate that it finds."""

CHECKPOINT = "checkpoint-"


@dataclass(frozen=True)
class TrainConfig:
    """Hyperparameters of a distillation: with teacher and samples, they determine the result.

    Attributes:
        radius, down_factor: The window.
        steps: Optimizer steps.
        batch: Samples per process and pass.
        accumulation: Passes per optimizer step.
        optimizer: "adamw", or "prodigy" (needs the package prodigyopt).
        rate: Learning rate, constant after ``warm_up`` steps; None becomes the optimizer's of :data:`RATES`.
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
    rate: float | None = None
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
        if self.optimizer not in RATES:
            raise ValueError(f"optimizer is {quoted(self.optimizer)}; expected one of {', '.join(RATES)}.")
        if self.rate is None:
            object.__setattr__(self, "rate", RATES[self.optimizer])
        for name in ("rate", "clip"):
            check_number(name, getattr(self, name), 0, above=True)

    @property
    def spec(self) -> ClearSpec:
        """The window."""
        return ClearSpec(self.radius, self.down_factor)

    @property
    def full_rate(self) -> float:
        """Learning rate after the warm-up."""
        assert self.rate is not None  # Since it was made.
        return self.rate

    def rate_at(self, step: int) -> float:
        """Learning rate of a step."""
        return self.full_rate * min(1.0, (step + 1) / max(self.warm_up, 1))


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob(f"{CHECKPOINT}*") if path.is_dir())


def step_of(checkpoint: Path) -> int:
    """The number of steps that a checkpoint has behind it."""
    return int(checkpoint.name.removeprefix(CHECKPOINT))


def check_config(folder: Path, config: TrainConfig, processes: int, samples: int) -> None:
    """Writes the configuration into a new folder; in an old one, checks that it is the same.

    Raises:
        ValueError: The folder's distillation was begun with another configuration (more steps are allowed), has run for
            more steps than are asked for, or its ``training.json`` cannot be read.
    """
    path = folder / "training.json"
    mine = asdict(config) | {"processes": processes, "samples": samples}
    if path.exists():
        try:
            begun: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{path} cannot be read as JSON ({error}), so nobody knows what {folder} was made from; choose another "
                "folder, or put the file back."
            ) from error
        if not isinstance(begun, dict):
            raise ValueError(f"{path} holds no settings; choose another folder, or put the file back.")
        for name, value in mine.items():
            if name != "steps" and begun.get(name) != value:
                raise ValueError(
                    f"{folder} holds a distillation begun with {name} {begun.get(name)}, and now it is "
                    f"{value}; go on with {begun.get(name)}, or choose another folder."
                )
    found = checkpoints(folder)
    if found and (done := step_of(found[-1])) > config.steps:
        raise ValueError(
            f"steps is {config.steps}, but the distillation in {folder} has run for {done}; set steps to {done} or "
            "more, or choose another folder."
        )
    path.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
