"""The training of the demo's small models: flow matching on pictures of the world, from nothing.

All randomness is a function of (seed, step), so a training that is stopped and started again with the same command
gives the result of an uninterrupted one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from clear_core.progress import bar

from .tiny_flux.data import Batch, training_batch

WARM_UP = 100
CLIP = 1.0


@dataclass(frozen=True)
class Stage:
    """A stage of the training.

    Attributes:
        steps: Number of steps.
        sizes: (height, width) in pixels and images per step; steps take them in turn.
        rate: Learning rate at the start and at the end, linear between.
        shift: ``large`` of ``training_batch``.
        moved: Whether the pictures lie anywhere on the model's table of positions (``Recipe.moved``).
    """

    steps: int
    sizes: tuple[tuple[int, int, int], ...]
    rate: tuple[float, float]
    shift: float = 0.0
    moved: bool = False


Velocity = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor], Tensor]
"""A model's prediction of ``noise - x``: of the model, (B, 16, H, W) noisy latents, (B,) noise levels, (B, T, 128)
context and (B, 64) pooled vector, the shape of the latents."""


@dataclass(frozen=True)
class Recipe:
    """What is a small model's own in its training.

    Attributes:
        name: Name of the model's file, without its end.
        new_model: The untrained model of a seed.
        velocity: What the model predicts.
        save: Writes the trained model with some metadata.
        stages: The stages in their order.
        moved: The same for stages whose pictures lie anywhere on a table of positions; may leave the table moved.
    """

    name: str
    new_model: Callable[[int], Any]
    velocity: Velocity
    save: Callable[[Any, Path, dict[str, str]], None]
    stages: tuple[Stage, ...]
    moved: Velocity | None = None


class Average:
    """Exponential moving average of a model's parameters."""

    def __init__(self, model: nn.Module, decay: float = 0.995) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Adds the parameters of a step; the first steps weigh more."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            self.values[name].lerp_(parameter, 1 - decay)


def stage_of(step: int, stages: tuple[Stage, ...]) -> tuple[Stage, int]:
    """The stage of a step, and the step's index within it."""
    for stage in stages:
        if step < stage.steps:
            return stage, step
        step -= stage.steps
    raise IndexError("the training is over")


def picture_counts(stage: Stage) -> list[int]:
    """Number of images in every step of a stage."""
    return [stage.sizes[step % len(stage.sizes)][2] for step in range(stage.steps)]


def step_batch(seed: int, step: int, stages: tuple[Stage, ...]) -> Batch:
    """The batch of a step."""
    stage, within = stage_of(step, stages)
    height, width, count = stage.sizes[within % len(stage.sizes)]
    return training_batch(seed, step, count, (height, width), stage.shift)


def learning_rate(step: int, stages: tuple[Stage, ...]) -> float:
    """Learning rate of a step, with a linear warm-up."""
    stage, within = stage_of(step, stages)
    start, end = stage.rate
    return min(1.0, (step + 1) / WARM_UP) * (start + (end - start) * within / stage.steps)


def batch_loss(velocity: Velocity, model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error of the predicted flow."""
    predicted = velocity(model, batch.noisy, batch.sigma, batch.context, batch.pooled)
    return (predicted.float() - (batch.noise - batch.latents)).square().mean()


class Optimizers:
    """Muon for the matrices in the blocks, AdamW for the rest; this needs far fewer steps here than AdamW alone."""

    def __init__(self, model: nn.Module) -> None:
        hidden = [
            p
            for name, p in model.named_parameters()
            if p.ndim == 2 and "transformer_blocks" in name and "norm" not in name
        ]
        inner = set(map(id, hidden))
        rest = [p for p in model.parameters() if id(p) not in inner]
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(hidden, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(
                [
                    {"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.01},
                    {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
                ],
                betas=(0.9, 0.99),
            ),
        ]

    def step(self, rate: float) -> None:
        """One step at a learning rate; clears the gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad()

    def state(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """Optimizer state by parameter; may be written to."""
        return {
            parameter: part.state[parameter]
            for part in self.parts
            for group in part.param_groups
            for parameter in group["params"]
        }


def save_state(path: Path, step: int, model: nn.Module, average: Average, optimizers: Optimizers) -> None:
    """Writes the state that a resumed training needs; a failure leaves the old file."""
    tensors, memory = dict[str, Tensor](), optimizers.state()
    for name, parameter in model.named_parameters():
        tensors |= {f"model.{name}": parameter.detach(), f"average.{name}": average.values[name]}
        tensors |= {f"{key}.{name}": value for key, value in memory[parameter].items()}
    part = path.with_suffix(".part")
    save_file({name: tensor.cpu() for name, tensor in tensors.items()}, part, metadata={"step": str(step)})
    part.replace(path)


@torch.no_grad()
def load_state(path: Path, model: nn.Module, average: Average, optimizers: Optimizers) -> int:
    """Restores a saved state and returns the next step."""
    memory = optimizers.state()
    with safe_open(path, "pt") as file:
        parameters = dict(model.named_parameters())
        for key in list(file.keys()):
            kind, _, name = key.partition(".")
            tensor, parameter = file.get_tensor(key), parameters[name]
            if kind == "model":
                parameter.copy_(tensor)
            elif kind == "average":
                average.values[name].copy_(tensor)
            else:
                # AdamW keeps its step count on the CPU.
                memory[parameter][kind] = tensor if kind == "step" else tensor.to(parameter.device)
        return int(file.metadata()["step"])


def train(
    recipe: Recipe, out: Path, *, seed: int, save_every: float, compiled: bool, device: torch.device | None = None
) -> nn.Module:
    """Runs or resumes the training and returns the averaged model.

    Args:
        recipe: The model and its stages.
        out: Folder for ``state.safetensors``, ``log.jsonl`` and, at the end, the model's file.
        save_every: Seconds between two saved states.
        compiled: Whether to use torch.compile, about twice as fast.
        device: The CPU by default.
    """
    out.mkdir(parents=True, exist_ok=True)
    device = device or torch.device("cpu")
    model, stages = recipe.new_model(seed), recipe.stages
    nn.Module.to(model, device)
    average, optimizers = Average(model), Optimizers(model)
    state = out / "state.safetensors"
    first = load_state(state, model, average, optimizers) if state.exists() else 0
    total = sum(stage.steps for stage in stages)
    if compiled:
        model.compile(dynamic=False)
    saved = began = time.monotonic()
    losses, pictures = list[float](), 0
    with ThreadPoolExecutor(1) as drawing, (out / "log.jsonl").open("a") as log:
        # One batch is drawn ahead.
        waiting = deque([drawing.submit(step_batch, seed, first, stages)] if first < total else [])
        for step in bar(range(first, total), initial=first, total=total, unit="step"):
            batch = waiting.popleft().result().to(device)
            if step + 1 < total:
                waiting.append(drawing.submit(step_batch, seed, step + 1, stages))
            with torch.autocast(device.type, torch.bfloat16):
                moved = recipe.moved if stage_of(step, stages)[0].moved else None
                loss = batch_loss(moved or recipe.velocity, model, batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizers.step(learning_rate(step, stages))
            average.update(model, step)
            losses.append(loss.item())
            pictures += len(batch.sigma)
            now = time.monotonic()
            if step % 25 == 24:
                record = {
                    "step": step + 1,
                    "loss": sum(losses) / len(losses),
                    "pictures_per_second": round(pictures / (now - began), 2),
                }
                log.write(json.dumps(record) + "\n")
                log.flush()
                losses, pictures, began = [], 0, now
            if now - saved > save_every or step + 1 == total:
                save_state(state, step + 1, model, average, optimizers)
                saved = now
    model.load_state_dict(model.state_dict() | average.values)
    facts = {
        "seed": seed,
        "steps": total,
        "pictures": sum(count for stage in stages for count in picture_counts(stage)),
    }
    recipe.save(model, out / f"{recipe.name}.safetensors", {"training": json.dumps(facts)})
    return model


def run(recipe: Recipe, description: str) -> None:
    """The command line of a model's training."""
    parser = argparse.ArgumentParser(prog=f"python -m demo.{recipe.name}.train", description=description)
    parser.add_argument("--out", type=Path, default=Path("out") / recipe.name, help="folder for states and the log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=float, default=120, help="seconds between two saved states")
    parser.add_argument(
        "--longer",
        type=float,
        default=1.0,
        metavar="TIMES",
        help="factor on the length of every stage; 8 takes a night on two cores (default: 1)",
    )
    parser.add_argument("--threads", type=int, help="threads of the computation; all cores by default")
    parser.add_argument("--no-compile", action="store_true", help="run without torch.compile (no C++ compiler needed)")
    parser.add_argument(
        "--device", type=torch.device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    stages = tuple(replace(stage, steps=round(stage.steps * args.longer)) for stage in recipe.stages)
    train(
        replace(recipe, stages=stages),
        args.out,
        seed=args.seed,
        save_every=args.save_every,
        compiled=not args.no_compile,
        device=args.device,
    )
