"""``train``: samples to weights."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...number_checks import check_number
from ...progress import bar, losses_told
from ..config import TrainConfig
from ..training_log import TrainingLog
from .estimate import run_estimate
from .load import load_transformer, load_vae
from .settings import config_of

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..train import Distillation
    from ..validation import Validation


def run_train(options: argparse.Namespace) -> None:
    if options.estimate:
        run_estimate(options)
        return
    from ..accelerators import new_accelerator
    from ..outputs import check_forms

    if options.out is None or options.data is None:
        raise ValueError("train needs --data, the folder of samples, and --out; --estimate alone needs neither.")
    check_number("held_out", options.held_out, 0, whole=True)
    check_number("save_every", options.save_every, 1, whole=True)
    check_number("pictures_every", options.pictures_every, 0, whole=True)
    logged = "tensorboard" if options.tensorboard else None
    accelerator = new_accelerator(options.cpu, log_with=logged, project_dir=str(options.out))
    config = config_of(options, accelerator.num_processes)
    check_forms(options.form or (), config.rank)
    accelerator.gradient_accumulation_steps = config.accumulation
    Session(options, config, accelerator).run()


class Session:
    """One run of the command: what it writes and prints around the training."""

    def __init__(self, options: argparse.Namespace, config: TrainConfig, accelerator: Accelerator) -> None:
        from ..samples import SampleFolder

        self.options, self.config, self.accelerator = options, config, accelerator
        self.out: Path = options.out
        self.samples = SampleFolder(options.data, end=-options.held_out or None)
        self.held_out = SampleFolder(options.data, first=-options.held_out) if options.held_out else None
        self.before: float | None = None
        self.after: float | None = None
        self.start = 0
        self.pictures: Validation | None = None

    def run(self) -> None:
        from ..checkpoint import still_to_fit
        from ..disk import check_space
        from ..order import remarks
        from ..set_up import set_up
        from ..train import distil

        options, accelerator = self.options, self.accelerator
        self.out.mkdir(parents=True, exist_ok=True)
        self.made_from = self._made_from()
        if not options.download:  # Of a model that is still to come, the content is not known.
            self._remember(write=False)
        vae = self._vae()
        self.training: Distillation = set_up(
            load_transformer(options),
            self.samples,
            self.config,
            accelerator,
            backend=options.backend,
            checkpointing=options.checkpointing,
            offload=options.offload,
        )
        self._remember(write=True)
        if vae is not None and self.held_out is not None:
            from ..validation import Validation

            place = self.out / "pictures"
            self.pictures = Validation(self.training.pair, self.held_out, vae, place, self.training.guidance)
        if accelerator.is_main_process:
            for remark in [*remarks(self.training.order), *self._unused()]:
                print(remark, file=sys.stderr)
            count = still_to_fit(self.out, self.config.steps, options.save_every, self.held_out is not None)
            check_space(self.out, count * self.training.checkpoint_bytes, f"{count} checkpoints")
        if options.tensorboard:
            accelerator.init_trackers("clear", dataclasses.asdict(self.config))
        with (
            TrainingLog(self.out, accelerator.is_main_process) as log,
            bar(total=self.config.steps, unit="step", shown=accelerator.is_main_process) as steps,
        ):

            def on_start(step: int) -> None:
                log.begin(step)
                self.start, self.before = step, self.judge(step)
                self.after = self.before  # If no step is left to run.
                steps.update(step - steps.n)

            def on_step(step: int, losses: dict[str, float]) -> None:
                steps.update(step - steps.n)
                steps.set_postfix_str(losses_told(losses))
                self._log(log, step, losses)
                if self.pictures is not None and step % options.pictures_every == 0:
                    with self.training.autocast():
                        self.pictures.run(step, accelerator.device, accelerator.is_main_process)

            def judge(step: int) -> float | None:
                error = self.judge(step)
                if error is not None:
                    self._log(log, step, {"held_out": error})
                self.after = error
                return error

            distil(
                self.training, self.out, save_every=options.save_every, on_step=on_step, on_start=on_start, judge=judge
            )
        if options.tensorboard:
            accelerator.end_training()
        self._write()

    def _unused(self) -> list[str]:
        """Sentences about settings that do not do what they seem to."""
        config, pair = self.config, self.training.pair
        said: list[str] = []
        if config.rank is not None and config.rank > pair.shape.width:
            said.append(
                f"rank is {config.rank}, and the model's width {pair.shape.width} is the largest rank: it is used."
            )
        if config.guidance is not None and pair.teaching.ignores_guidance(pair.transformer.config):
            said.append(f"guidance is {config.guidance:g}, but this model has no guidance: it changes nothing.")
        if config.warm_up > config.steps:
            said.append(
                f"warm_up is {config.warm_up}, and the training ends after {config.steps} steps: the rate rises to "
                f"{config.rate_at(config.steps - 1):g} of {config.full_rate:g}; set a shorter warm-up, or more steps."
            )
        return said

    def judge(self, step: int) -> float | None:
        """The held-out error."""
        from ..evaluate import mean_error, velocity_errors

        if self.held_out is None:
            return None
        training = self.training
        with training.autocast():
            errors = velocity_errors(
                training.pair, self.held_out, guidance=training.guidance, device=self.accelerator.device
            )
        return mean_error(errors)

    def _log(self, log: TrainingLog, step: int, values: dict[str, float]) -> None:
        log.write(step, values)
        if self.options.tensorboard:
            self.accelerator.log(values, step=step)

    def _made_from(self) -> dict[str, Any]:
        """What this run is made from, besides the model; in the main process."""
        from ..folder_record import fingerprint_of_samples, unfinished

        if not self.accelerator.is_main_process:
            return {}
        for remark in unfinished(self.options.data):
            print(remark, file=sys.stderr)
        trained = fingerprint_of_samples(self.options.data, self.samples.paths)
        judged = fingerprint_of_samples(self.options.data, self.held_out.paths) if self.held_out else {}
        return {
            "dtype": self.options.dtype,
            **trained,
            "held_out": self.options.held_out,
            "held_out_content": judged.get("sample_content"),
        }

    def _remember(self, write: bool) -> None:
        """Compares what this run is made from with what the folder was begun with.

        Args:
            write: Whether the folder remembers it from now on: a run that cannot begin leaves no record, which would
                refuse the corrected one.
        """
        from ..config import check_config
        from ..model_content import content_of

        if self.accelerator.is_main_process:
            made_from = {"model": content_of(self.options.model), **self.made_from}
            check_config(self.out, self.config, self.accelerator.num_processes, made_from, write=write)
        self.accelerator.wait_for_everyone()

    def _vae(self) -> Any:
        """The VAE if pictures are wanted; before the model itself is loaded."""
        if not self.options.pictures_every:
            return None
        if self.held_out is None:
            raise ValueError("pictures_every needs held-out samples, whose texts are drawn; set held_out to 1 or more.")
        return load_vae(self.options)

    def _write(self) -> None:
        import torch

        from ..checkpoint import weights_of
        from ..outputs import file_name, save_weights

        training, config, options = self.training, self.config, self.options
        weights = weights_of(training.pair.trained())
        if not self.accelerator.is_main_process:
            return
        dtype = getattr(torch, options.file_dtype)
        what = f"rank {config.rank}" if config.rank else "whole weights"
        source = (
            f"distilled by clear_core from {Path(options.model).name}: {config.spec}, {what}, {config.steps} steps of "
            f"{training.order.size} samples out of {len(self.samples)}, {config.optimizer} rate {config.full_rate:g}, "
            f"seed {config.seed}"
        )
        for form in options.form or ["merged"]:
            path = self.out / file_name(config.spec, form)
            save_weights(path, training.pair, weights, source, form=form, dtype=dtype)
            print(f"Wrote {path}.")
        if self.held_out is not None and self.before is not None and self.after is not None:
            print(
                f"Distance of the flow from the dense model's on {len(self.held_out)} held-out samples (mean squared): "
                f"{self.before:.3e} before this run (after step {self.start}), {self.after:.3e} after."
            )
