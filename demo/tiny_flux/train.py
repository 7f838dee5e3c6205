"""Trains the tiny FLUX from nothing: ``python -m demo.tiny_flux.train --out out/tiny_flux``.

Everything that is random comes from (seed, step), so a training that was stopped and started again with the same
command goes on as if nothing had happened.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .caption import encode_captions
from .data import Batch, training_batch
from .model import new_tiny_flux, velocity
from .weights import save_tiny_flux

WARM_UP = 100
CLIP = 1.0


@dataclass(frozen=True)
class Stage:
    """A stretch of the training.

    Attributes:
        steps: Its length.
        sizes: (height, width) in pixels and pictures per step; steps take them in turn.
        rate: Learning rate at its start and at its end, linear between.
        guided: Whether the target is the frozen model's own flow under classifier-free guidance, whose strength
            goes into the guidance input (how FLUX.1-dev was made), rather than the data's.
        shift: As ``training_batch``'s ``large``.
    """

    steps: int
    sizes: tuple[tuple[int, int, int], ...]
    rate: tuple[float, float]
    guided: bool = False
    shift: float = 0.0


# Sizes of one stage have one number of tokens, so that torch.compile sees few shapes.
SMALL = ((160, 192, 32), (192, 160, 32), (128, 240, 32), (160, 192, 32), (192, 160, 32), (240, 128, 32))
USUAL = ((256, 240, 16), (240, 256, 16), (192, 320, 16), (256, 240, 16), (240, 256, 16), (320, 192, 16))
LARGE = ((480, 512, 4), (512, 480, 4), (384, 640, 4), (480, 512, 4), (512, 480, 4), (640, 384, 4))

# Small pictures first: what stands where is learnt cheaper on them.
STAGES = (
    Stage(3000, SMALL, (1e-3, 1e-3)),
    Stage(3000, USUAL, (1e-3, 7e-4), shift=0.3),
    Stage(800, tuple(size for pair in zip(LARGE, USUAL) for size in pair), (7e-4, 1e-4), shift=0.5),
    Stage(400, USUAL, (2e-4, 2e-5), guided=True, shift=0.5),
)
MOST_GUIDANCE = 5.0


class Average:
    """Exponential moving average of a model's parameters."""

    def __init__(self, model: nn.Module, decay: float = 0.998) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            self.values[name].lerp_(parameter, 1 - decay)


def place(step: int, stages: tuple[Stage, ...]) -> tuple[Stage, int]:
    """The stage that a step lies in, and the step's number within it."""
    for stage in stages:
        if step < stage.steps:
            return stage, step
        step -= stage.steps
    raise IndexError("the training is over")


def picture_counts(stage: Stage) -> list[int]:
    """Number of pictures of every step of a stage."""
    return [stage.sizes[step % len(stage.sizes)][2] for step in range(stage.steps)]


def step_batch(seed: int, step: int, stages: tuple[Stage, ...] = STAGES) -> Batch:
    stage, within = place(step, stages)
    height, width, count = stage.sizes[within % len(stage.sizes)]
    return training_batch(seed, step, count, (height, width), stage.shift)


def learning_rate(step: int, stages: tuple[Stage, ...] = STAGES) -> float:
    stage, within = place(step, stages)
    start, end = stage.rate
    return min(1.0, (step + 1) / WARM_UP) * (start + (end - start) * within / stage.steps)


def batch_loss(model: nn.Module, batch: Batch, teacher: nn.Module | None) -> Tensor:
    """Mean squared error of the predicted flow; with a teacher, against its guided prediction."""
    noisy, guidance, target = batch.noisy, torch.ones_like(batch.sigma), batch.noise - batch.latents
    if teacher is not None:
        with torch.no_grad():
            flow = velocity(teacher, noisy, batch.sigma, batch.context, batch.pooled, guidance)
            plain = velocity(teacher, noisy, batch.sigma, *encode_captions([""] * len(noisy)), guidance)
        # The noise is as good a source of chance as any, and belongs to the step.
        guidance = 1 + (MOST_GUIDANCE - 1) * torch.special.ndtr(batch.noise[:, 0, 0, 0])
        target = plain + guidance[:, None, None, None] * (flow - plain)
    predicted = velocity(model, noisy, batch.sigma, batch.context, batch.pooled, guidance)
    return (predicted.float() - target.float()).square().mean()


def optimizer_for(model: nn.Module) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}],
                             lr=1e-3, betas=(0.9, 0.99))


def save_state(path: Path, step: int, model: nn.Module, average: Average, optimizer: torch.optim.Optimizer) -> None:
    """Writes all that the training needs to go on; the file is whole or the old one stays."""
    tensors = {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        tensors |= {f"model.{name}": parameter.detach(), f"average.{name}": average.values[name],
                    f"first.{name}": state["exp_avg"], f"second.{name}": state["exp_avg_sq"]}
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"step": str(step)})
    part.replace(path)


def load_state(path: Path, model: nn.Module, average: Average, optimizer: torch.optim.Optimizer) -> int:
    """Puts a saved state back and returns the next step."""
    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(f"model.{name}"))
                average.values[name] = file.get_tensor(f"average.{name}")
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(step)), "exp_avg": file.get_tensor(f"first.{name}"),
                    "exp_avg_sq": file.get_tensor(f"second.{name}")}
    return step


def teacher_of(path: Path, model: nn.Module, average: Average) -> nn.Module:
    """The averaged model as it was when the guided stage began, from ``path``, written there the first time."""
    if not path.exists():
        save_file({name: value.contiguous() for name, value in average.values.items()}, path)
    teacher = new_tiny_flux()
    with safe_open(path, "pt") as file:
        teacher.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
    return teacher.requires_grad_(False)


def train(out: Path, *, seed: int, save_every: float, compiled: bool, stages: tuple[Stage, ...] = STAGES) -> nn.Module:
    """Runs or resumes the training and returns the averaged model.

    Args:
        out: Folder for ``state.safetensors``, ``log.jsonl`` and, at the end, ``tiny_flux.safetensors``.
        save_every: Seconds between two saved states.
        compiled: Whether to run the model through torch.compile, about twice as fast.
    """
    from tqdm import tqdm

    out.mkdir(parents=True, exist_ok=True)
    model = new_tiny_flux(seed)
    average, optimizer = Average(model), optimizer_for(model)
    state = out / "state.safetensors"
    first = load_state(state, model, average, optimizer) if state.exists() else 0
    total = sum(stage.steps for stage in stages)
    run = torch.compile(model, dynamic=False) if compiled else model
    teacher: nn.Module | None = None
    saved = began = time.monotonic()
    losses, pictures = [], 0
    with ThreadPoolExecutor(1) as drawing, (out / "log.jsonl").open("a") as log:
        waiting = drawing.submit(step_batch, seed, first, stages) if first < total else None
        for step in tqdm(range(first, total), initial=first, total=total, unit="step"):
            batch = waiting.result()
            if step + 1 < total:
                waiting = drawing.submit(step_batch, seed, step + 1, stages)
            if place(step, stages)[0].guided and teacher is None:
                teacher = teacher_of(out / "teacher.safetensors", model, average)
                teacher = torch.compile(teacher, dynamic=False) if compiled else teacher
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, stages)
            with torch.autocast("cpu", torch.bfloat16):
                loss = batch_loss(run, batch, teacher)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad()
            average.update(model, step)
            losses.append(loss.item())
            pictures += len(batch.sigma)
            now = time.monotonic()
            if step % 25 == 24:
                record = {"step": step + 1, "loss": sum(losses) / len(losses),
                          "pictures_per_second": round(pictures / (now - began), 2)}
                log.write(json.dumps(record) + "\n")
                log.flush()
                losses, pictures, began = [], 0, now
            if now - saved > save_every or step + 1 == total:
                save_state(state, step + 1, model, average, optimizer)
                saved = now
    model.load_state_dict(average.values)
    facts = {"seed": seed, "steps": total, "pictures": sum(count for stage in stages for count in picture_counts(stage))}
    save_tiny_flux(model, out / "tiny_flux.safetensors", {"training": json.dumps(facts)})
    return model


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.tiny_flux.train", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/tiny_flux"), help="folder for states and the log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=float, default=120, help="seconds between two saved states")
    parser.add_argument("--threads", type=int, help="threads to compute with; all cores by default")
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile (no C++ compiler needed)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    train(args.out, seed=args.seed, save_every=args.save_every, compiled=not args.no_compile)


if __name__ == "__main__":
    main()
