"""Trains the tiny FLUX from nothing: ``python -m demo.tiny_flux.train --out out/tiny_flux``.

Everything that is random comes from (seed, step), so a training that was stopped and started again with the same
command goes on as if nothing had happened.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .data import Batch, training_batch
from .model import GUIDANCE, new_tiny_flux, velocity
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
        shift: As ``training_batch``'s ``large``.
    """

    steps: int
    sizes: tuple[tuple[int, int, int], ...]
    rate: tuple[float, float]
    shift: float = 0.0


# Few different numbers of tokens, so that torch.compile sees few shapes.
SMALL = ((160, 192, 32), (192, 160, 32), (128, 240, 32), (160, 192, 32), (192, 160, 32), (240, 128, 32))
USUAL = ((256, 256, 16), (256, 256, 16), (512, 512, 4))
# A few of the largest, so that full attention also holds at 4096 tokens, where windows are compared with it.
LARGE = (*USUAL, (256, 256, 16), (256, 256, 16), (1024, 1024, 1))

# Small pictures first: what stands where is learnt cheaper on them.
STAGES = (
    Stage(2700, SMALL, (1e-3, 1e-3)),
    Stage(900, USUAL, (1e-3, 1e-3), shift=0.6),
    Stage(2000, LARGE, (1e-3, 2e-5), shift=0.4),
)


class Average:
    """Exponential moving average of a model's parameters."""

    def __init__(self, model: nn.Module, decay: float = 0.995) -> None:
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


def batch_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean squared error of the predicted flow."""
    guidance = torch.full_like(batch.sigma, GUIDANCE)
    predicted = velocity(model, batch.noisy, batch.sigma, batch.context, batch.pooled, guidance)
    return (predicted.float() - (batch.noise - batch.latents)).square().mean()


class Optimizers:
    """Muon for the matrices inside the blocks, AdamW for all else, which needs far fewer steps here than AdamW alone."""

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
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad()

    def state(self) -> dict[nn.Parameter, dict[str, Tensor]]:
        """What each parameter's optimizer remembers about it; may be written to."""
        return {
            parameter: part.state[parameter]
            for part in self.parts
            for group in part.param_groups
            for parameter in group["params"]
        }


def save_state(path: Path, step: int, model: nn.Module, average: Average, optimizers: Optimizers) -> None:
    """Writes all that the training needs to go on; the file is whole or the old one stays."""
    tensors, memory = {}, optimizers.state()
    for name, parameter in model.named_parameters():
        tensors |= {f"model.{name}": parameter.detach(), f"average.{name}": average.values[name]}
        tensors |= {f"{key}.{name}": value for key, value in memory[parameter].items()}
    part = path.with_suffix(".part")
    save_file({name: tensor.cpu() for name, tensor in tensors.items()}, part, metadata={"step": str(step)})
    part.replace(path)


@torch.no_grad()
def load_state(path: Path, model: nn.Module, average: Average, optimizers: Optimizers) -> int:
    """Puts a saved state back and returns the next step."""
    memory = optimizers.state()
    with safe_open(path, "pt") as file:
        names = dict(model.named_parameters())
        for key in file.keys():
            kind, _, name = key.partition(".")
            tensor, parameter = file.get_tensor(key), names[name]
            if kind == "model":
                parameter.copy_(tensor)
            elif kind == "average":
                average.values[name].copy_(tensor)
            else:
                # AdamW keeps its count of steps on the CPU.
                memory[parameter][kind] = tensor if kind == "step" else tensor.to(parameter.device)
        return int(file.metadata()["step"])


def train(
    out: Path,
    *,
    seed: int,
    save_every: float,
    compiled: bool,
    stages: tuple[Stage, ...] = STAGES,
    device: torch.device = torch.device("cpu"),
) -> nn.Module:
    """Runs or resumes the training and returns the averaged model.

    Args:
        out: Folder for ``state.safetensors``, ``log.jsonl`` and, at the end, ``tiny_flux.safetensors``.
        save_every: Seconds between two saved states.
        compiled: Whether to run the model through torch.compile, about twice as fast.
    """
    from tqdm import tqdm

    out.mkdir(parents=True, exist_ok=True)
    model = new_tiny_flux(seed).to(device)
    average, optimizers = Average(model), Optimizers(model)
    state = out / "state.safetensors"
    first = load_state(state, model, average, optimizers) if state.exists() else 0
    total = sum(stage.steps for stage in stages)
    run = torch.compile(model, dynamic=False) if compiled else model
    saved = began = time.monotonic()
    losses, pictures = [], 0
    with ThreadPoolExecutor(1) as drawing, (out / "log.jsonl").open("a") as log:
        waiting = drawing.submit(step_batch, seed, first, stages) if first < total else None
        for step in tqdm(range(first, total), initial=first, total=total, unit="step"):
            batch = waiting.result().to(device)
            if step + 1 < total:
                waiting = drawing.submit(step_batch, seed, step + 1, stages)
            with torch.autocast(device.type, torch.bfloat16):
                loss = batch_loss(run, batch)
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
    model.load_state_dict(average.values)
    facts = {
        "seed": seed,
        "steps": total,
        "pictures": sum(count for stage in stages for count in picture_counts(stage)),
    }
    save_tiny_flux(model, out / "tiny_flux.safetensors", {"training": json.dumps(facts)})
    return model


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo.tiny_flux.train", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/tiny_flux"), help="folder for states and the log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=float, default=120, help="seconds between two saved states")
    parser.add_argument(
        "--longer",
        type=float,
        default=1.0,
        metavar="TIMES",
        help="lengthen every stage; 8 is meant for a night on two cores (default: 1)",
    )
    parser.add_argument("--threads", type=int, help="threads to compute with; all cores by default")
    parser.add_argument("--no-compile", action="store_true", help="do without torch.compile (no C++ compiler needed)")
    parser.add_argument(
        "--device", type=torch.device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    stages = tuple(replace(stage, steps=round(stage.steps * args.longer)) for stage in STAGES)
    train(
        args.out,
        seed=args.seed,
        save_every=args.save_every,
        compiled=not args.no_compile,
        stages=stages,
        device=args.device,
    )


if __name__ == "__main__":
    main()
