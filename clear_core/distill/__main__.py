"""``python -m clear_core.distill``: samples, training and evaluation from a terminal."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ClearSpec
from ..number_checks import check_number

if TYPE_CHECKING:
    import torch
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
    from torch import nn

DTYPES = ("float32", "bfloat16")


def main(arguments: list[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status."""
    options = parse(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"{type(error).__name__}: {error}" if isinstance(error, OSError) else error, file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m clear_core.distill",
        description="Trains windows for any FLUX.1 model: first samples (images or generate), then train. Needs "
        "diffusers and accelerate; several GPUs, ZeRO-2 or FSDP through `accelerate launch -m "
        "clear_core.distill train ...`.",
    )
    commands = parser.add_subparsers(required=True, metavar="images | generate | train | evaluate")

    images = commands.add_parser("images", help="samples from a folder of pictures with .txt captions")
    images.add_argument("folder", type=Path)
    images.add_argument("--pixels", type=int, default=1024, help="square root of the area (default: 1024)")
    images.set_defaults(run=run_images)
    generate = commands.add_parser("generate", help="samples made by the model itself, as in the paper")
    generate.add_argument("captions", type=Path, help="text file, one caption per line")
    generate.add_argument("--size", type=int, nargs=2, default=(1024, 1024), metavar=("HEIGHT", "WIDTH"))
    generate.add_argument("--steps", type=int, default=20)
    generate.add_argument("--guidance", type=float, default=3.5)
    generate.add_argument("--seed", type=int, default=0)
    generate.set_defaults(run=run_generate)
    for command in (images, generate):
        command.add_argument("--out", type=Path, required=True, help="folder for the samples; resumes after a stop")

    train = commands.add_parser("train", help="samples to weights; resumes after a stop")
    train.add_argument("--out", type=Path, required=True, help="folder for checkpoints, log and weights")
    train.add_argument("--radius", type=int, required=True, help="window radius in tokens of 16 px")
    train.add_argument("--down-factor", type=int, default=1, help="side of pooled cells (default: 1, no pooling)")
    train.add_argument("--steps", type=int, default=10_000)
    train.add_argument("--batch", type=int, default=1, help="samples per process and pass")
    train.add_argument("--accumulation", type=int, default=1, help="passes per step")
    train.add_argument("--optimizer", default="adamw", help="adamw, or prodigy as in the paper")
    train.add_argument("--rate", type=float, help="learning rate (default: 1e-4 for adamw, 1 for prodigy)")
    train.add_argument("--warm-up", type=int, default=0, help="steps of rising rate")
    train.add_argument("--guidance", type=float, default=3.5)
    train.add_argument("--clip", type=float, default=1.0, help="largest gradient norm")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--backend", default="auto", help="backend of the windowed attention (default: auto)")
    train.add_argument("--checkpointing", action="store_true", help="recompute activations, for memory")
    train.add_argument("--save-every", type=int, default=500, help="steps between checkpoints")
    train.add_argument("--cpu", action="store_true", help="do not use a GPU")
    train.set_defaults(run=run_train)
    evaluate = commands.add_parser("evaluate", help="distance of windows from the dense model on held-out samples")
    evaluate.add_argument("--weights", type=Path, help="CLEAR file; without it, windows on the model as it is")
    evaluate.add_argument("--radius", type=int, default=0, help="0: as the weights were trained")
    evaluate.add_argument("--down-factor", type=int, default=0, help="0: as the weights were trained")
    evaluate.add_argument("--guidance", type=float, default=3.5)
    evaluate.set_defaults(run=run_evaluate)
    for command in (train, evaluate):
        command.add_argument("--data", type=Path, required=True, help="folder of samples")
        command.add_argument("--held-out", type=int, default=16, help="number of last samples held out of the training")
    for command in (images, generate, train, evaluate):
        command.add_argument("--model", required=True, help="folder or Hub name of a diffusers FLUX.1 model")
        command.add_argument("--download", action="store_true", help="download the model if it is not here yet")
        command.add_argument(
            "--dtype", choices=DTYPES, default="bfloat16", help="dtype of the frozen weights, and of autocast"
        )
    return parser.parse_args(arguments)


def load_options(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    return {"torch_dtype": getattr(torch, options.dtype), "local_files_only": not options.download}


def load_teacher(options: argparse.Namespace) -> FluxTransformer2DModel:
    """The transformer of a pipeline's folder, or of a folder with a transformer alone."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    alone = (Path(options.model) / "config.json").exists()
    return FluxTransformer2DModel.from_pretrained(
        options.model, subfolder=None if alone else "transformer", **load_options(options)
    )


def move(model: nn.Module, device: torch.device) -> None:
    """To a device; a function of its own because the annotations of diffusers' ``to`` do not describe it."""
    model.to(device)


def load_pipeline(options: argparse.Namespace) -> Any:
    import torch
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline

    pipeline = FluxPipeline.from_pretrained(options.model, **load_options(options))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to("cuda" if torch.cuda.is_available() else "cpu")


def run_images(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .prepare import captioned_pictures, samples_from_pictures

    total = len(captioned_pictures(options.folder))
    options.out.mkdir(parents=True, exist_ok=True)
    for _ in tqdm(
        samples_from_pictures(load_pipeline(options), options.folder, options.out, options.pixels),
        total=total,
        unit="picture",
    ):
        pass


def run_generate(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from .prepare import samples_from_teacher

    captions = [line.strip() for line in options.captions.read_text(encoding="utf-8").splitlines() if line.strip()]
    options.out.mkdir(parents=True, exist_ok=True)
    for _ in tqdm(
        samples_from_teacher(
            load_pipeline(options),
            captions,
            options.out,
            size=tuple(options.size),
            steps=options.steps,
            guidance=options.guidance,
            seed=options.seed,
        ),
        total=len(captions),
        unit="picture",
    ):
        pass


def run_train(options: argparse.Namespace) -> None:
    from accelerate import Accelerator
    from tqdm import tqdm

    from .config import TrainConfig, check_config
    from .evaluate import mean_error, velocity_errors
    from .samples import SampleFolder
    from .student import file_name, save_weights
    from .train import distil, set_up

    config = TrainConfig(**{field.name: getattr(options, field.name) for field in dataclasses.fields(TrainConfig)})
    spec = config.spec
    accelerator = Accelerator(
        cpu=options.cpu,
        gradient_accumulation_steps=config.accumulation,
        mixed_precision="bf16" if options.dtype == "bfloat16" else "no",
    )
    check_number("held_out", options.held_out, 0, whole=True)
    samples = SampleFolder(options.data, end=-options.held_out or None)
    held_out = SampleFolder(options.data, first=-options.held_out) if options.held_out else None
    options.out.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        check_config(options.out, config, accelerator.num_processes, len(samples))
    run = set_up(
        load_teacher(options),
        samples,
        config,
        accelerator,
        backend=options.backend,
        checkpointing=options.checkpointing,
    )

    def judge() -> float | None:
        if held_out is None:
            return None
        with accelerator.autocast():
            return mean_error(
                velocity_errors(run.student, run.teacher, held_out, guidance=run.guidance, device=accelerator.device)
            )

    before = judge()
    with (
        (options.out / "log.jsonl").open("a") as log,
        tqdm(total=config.steps, unit="step", disable=not accelerator.is_main_process) as bar,
    ):

        def on_step(step: int, losses: dict[str, float]) -> None:
            bar.update(step - bar.n)
            bar.set_postfix({name: f"{value:.4f}" for name, value in losses.items()})
            if accelerator.is_main_process:
                log.write(json.dumps({"step": step, **losses}) + "\n")
                log.flush()  # Somebody may be watching, and a killed process writes nothing more.

        distil(run, options.out, save_every=options.save_every, on_step=on_step)
    after = judge()
    state = accelerator.get_state_dict(run.student)
    if accelerator.is_main_process:
        source = (
            f"distilled by clear_core from {options.model}: {spec}, {config.steps} steps of {run.order.size} "
            f"samples out of {len(samples)}, {config.optimizer} rate {config.full_rate:g}, seed {config.seed}"
        )
        path = options.out / file_name(spec)
        save_weights(path, state, run.inner, spec, source)
        print(f"Wrote {path}.")
        if held_out is not None:
            print(
                f"Distance of the flow from the dense model's on {len(held_out)} held-out samples (mean squared): "
                f"{before:.3e} before this run, {after:.3e} after."
            )


def run_evaluate(options: argparse.Namespace) -> None:
    import torch

    from ..settings import choose_spec
    from ..weights import read_clear_file
    from .evaluate import mean_error, velocity_errors
    from .samples import SampleFolder
    from .student import load_weights, make_student

    check_number("held_out", options.held_out, 1, whole=True)
    file = read_clear_file(options.weights) if options.weights else None
    spec: ClearSpec = choose_spec(options.radius, options.down_factor, file)
    teacher = load_teacher(options).eval()
    student = make_student(teacher, spec).eval()
    if file is not None:
        load_weights(student, options.weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    move(teacher, device)
    move(student, device)
    guidance = options.guidance if teacher.config["guidance_embeds"] else None
    with torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
        errors = velocity_errors(
            student, teacher, SampleFolder(options.data, first=-options.held_out), guidance=guidance, device=device
        )
    print(
        json.dumps(
            {"window": str(spec), "velocity_mse": {str(k): v for k, v in errors.items()}, "mean": mean_error(errors)}
        )
    )


if __name__ == "__main__":
    sys.exit(main())
