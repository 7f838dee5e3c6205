"""What determines a distillation, and the folder that remembers it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..number_checks import check_number
from ..spec import ClearSpec
from ..wording import quoted
from .disk import no_half_file

BASES = ("plain", "fp8", "nf4")
"""Precisions of the frozen weights: the model's own, e4m3 by row (torchao), 4 bits by 64 numbers (bitsandbytes)."""

RATES = {"adamw": 1e-4, "adamw8bit": 1e-4, "prodigy": 1.0}
"""The optimizers, and the learning rate of each if none is named. Prodigy's is a factor on the rate that it finds."""

SCHEDULES = ("constant", "linear", "cosine")
"""How the rate goes on after the warm-up: it stays, or falls to 0 at the last step. Names in diffusers:"""

_IN_DIFFUSERS = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}

MOST = 1e6
"""Largest learning rate and gradient norm that are taken for meant."""

CHECKPOINT = "checkpoint-"

MOST_SEED = 1 << 62
"""So that torch takes every seed that follows, one for each projection of low rank."""

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"optimizer": "prodigy", "steps": 10_000, "samples_per_step": 32},
    "small": {"optimizer": "adamw", "steps": 2_000, "rate": 1e-3, "samples_per_step": 8, "rank": 64, "warm_up": 50},
}
"""Settings by name. "paper" is the paper's recipe (section 3.4 and the reference's scripts): Prodigy at rate 1, 32
samples a step, 10,000 steps. "small" is ours, for one card and a small set; its rate is the best of rank 64 on the tiny
FLUX (demo/experiments/distil.json), and nobody has measured it on FLUX.1."""


@dataclass(frozen=True)
class TrainConfig:
    """Hyperparameters of a distillation: with teacher and samples, they determine the result.

    Attributes:
        radius, down_factor: The window.
        steps: Optimizer steps.
        batch: Samples per process and pass.
        accumulation: Passes per optimizer step.
        optimizer: "adamw", "adamw8bit" (states in 8 bits; needs bitsandbytes), or "prodigy" (needs prodigyopt).
        rate: Learning rate after ``warm_up`` steps; None becomes the optimizer's of :data:`RATES`.
        schedule: One of :data:`SCHEDULES`.
        guidance: Guidance scale of teacher and student; None becomes the family's. Ignored by models without guidance.
        clip: Largest gradient norm.
        seed: Seed of order and noise.
        rank: Rank of low-rank additions; None trains whole weights.
        base: Precision of the frozen weights: "plain" is the model's, or "fp8", "nf4".
    """

    radius: int
    down_factor: int = 1
    steps: int = 10_000
    batch: int = 1
    accumulation: int = 1
    optimizer: str = "adamw"
    rate: float | None = None
    warm_up: int = 0
    schedule: str = "constant"
    guidance: float | None = None
    clip: float = 1.0
    seed: int = 0
    rank: int | None = None
    base: str = "plain"

    def __post_init__(self) -> None:
        ClearSpec(self.radius, self.down_factor)  # Refuses what is no window.
        for name in ("steps", "batch", "accumulation"):
            check_number(name, getattr(self, name), 1, whole=True)
        check_number("warm_up", self.warm_up, 0, whole=True)
        check_number("seed", self.seed, -MOST_SEED, MOST_SEED, whole=True)
        if self.guidance is not None:
            check_number("guidance", self.guidance)
        if self.rank is not None:
            check_number("rank", self.rank, 1, whole=True)
        for name, known in (("optimizer", tuple(RATES)), ("schedule", SCHEDULES), ("base", BASES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {quoted(getattr(self, name))}; expected one of {', '.join(known)}.")
        if self.rate is None:
            object.__setattr__(self, "rate", RATES[self.optimizer])
        for name in ("rate", "clip"):
            check_number(name, getattr(self, name), 0, MOST, above=True)

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
        """Learning rate of a step, 0 and up.

        The schedules are diffusers', as a function of the step alone: a resumed training takes the rates of an
        uninterrupted one. The library's first rate is 0, and its last one too; both steps would be lost.
        """
        return self.full_rate * _schedule(self.schedule, self.warm_up, self.steps)(step + 1)


@functools.lru_cache(maxsize=8)
def _schedule(name: str, warm_up: int, steps: int) -> Callable[[int], float]:
    """Factor on the rate by the number of steps done."""
    import torch
    from diffusers.optimization import get_scheduler

    nothing = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    made = get_scheduler(_IN_DIFFUSERS[name], nothing, num_warmup_steps=warm_up, num_training_steps=steps + 1)
    return made.lr_lambdas[0]


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a folder, oldest first; copies of them under other names are none."""
    found = (path for path in folder.glob(f"{CHECKPOINT}*") if path.name.removeprefix(CHECKPOINT).isdecimal())
    return sorted((path for path in found if path.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The number of steps that a checkpoint has behind it."""
    return int(checkpoint.name.removeprefix(CHECKPOINT))


RECORD = "training.json"


CONTENTS = ("model", "sample_content", "held_out_content")
"""What the record tells by a digest, which says nothing to a person."""


def check_config(
    folder: Path, config: TrainConfig, processes: int, made_from: Mapping[str, Any], *, write: bool = True
) -> None:
    """Writes the configuration into a new folder; in an old one, checks that it is the same.

    Args:
        made_from: Model and samples by their content, and what else decides the result, by names for people.
        write: Whether to write at all. A folder should be claimed only by what can be trained.

    Raises:
        ValueError: The folder's distillation was begun with another configuration or from something else (more steps
            are allowed at a constant rate), nobody knows with what, it has run for more steps than are asked for, or
            its record cannot be read.
    """
    mine = asdict(config) | {"processes": processes, **made_from}
    begun = read_training(folder)
    if begun is None and checkpoints(folder):
        raise ValueError(
            f"{folder} holds checkpoints, and no {RECORD} that says what they were made from; put the file back, or "
            "choose another folder."
        )
    for name, value in mine.items() if begun is not None else ():
        before = begun.get(name) if begun is not None else None
        if name == "steps" and config.schedule == "constant":
            continue
        if before != value and name in CONTENTS:
            raise ValueError(
                f"{folder} holds a distillation begun with another {name.replace('_', ' ')} (digest {before}, and now "
                f"it is {value}); put it back as it was, or choose another folder."
            )
        if before != value:
            raise ValueError(
                f"{folder} holds a distillation begun with {name.replace('_', ' ')} {before}, and now it is "
                f"{value}; go on with {before}, or choose another folder."
            )
    found = checkpoints(folder)
    if found and (done := step_of(found[-1])) > config.steps:
        raise ValueError(
            f"steps is {config.steps}, but the distillation in {folder} has run for {done}; set steps to {done} or "
            "more, or choose another folder."
        )
    if not write:
        return
    with no_half_file(folder / RECORD) as part:
        part.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")


def read_training(folder: Path) -> dict[str, Any] | None:
    """What a folder's distillation was begun with; None if there is none.

    Raises:
        ValueError: The record cannot be read.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        begun: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read as JSON ({error}), so nobody knows what {folder} was made from; choose another "
            "folder, or put the file back."
        ) from error
    if not isinstance(begun, dict):
        raise ValueError(f"{path} holds no settings; choose another folder, or put the file back.")
    return begun
