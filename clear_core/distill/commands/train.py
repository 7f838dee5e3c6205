"""``train``: samples to weights."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from ...number_checks import check_number
from .load import load_teacher


def run_train(options: argparse.Namespace) -> None:
    from accelerate import Accelerator
    from tqdm import tqdm

    from ..config import TrainConfig, check_config
    from ..evaluate import mean_error, velocity_errors
    from ..samples import SampleFolder
    from ..student import file_name, save_weights
    from ..train import distil, set_up

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
    state: Any = accelerator.get_state_dict(run.student)
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
