"""The train command: presets, what it writes beside the weights, and what it says."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clear_core.distill import __main__ as command
from clear_core.distill import disk, train
from clear_core.distill.checkpoint import best_of
from clear_core.distill.commands.settings import config_of
from clear_core.distill.config import TrainConfig, checkpoints
from clear_core.distill.training_log import TrainingLog
from clear_core.weights import read_clear_file
from tests.support.distillation import run, start, teacher
from tests.support.train_command import train_in


def options(*more: str) -> argparse.Namespace:
    return command.parse(["train", "--model", "x", "--radius", "8", *more])


def test_presets_are_settings_by_name_and_what_is_named_replaces_them():
    paper = config_of(options("--preset", "paper"), 4)
    assert (paper.optimizer, paper.rate, paper.steps, paper.rank) == ("prodigy", 1.0, 10_000, None)
    assert paper.batch * paper.accumulation * 4 == 32
    paper = config_of(options("--preset", "paper", "--batch", "2", "--steps", "7"), 1)
    assert paper.batch * paper.accumulation == 32 and paper.steps == 7
    small = config_of(options("--preset", "small", "--rank", "4"), 1)
    assert small.rank == 4 and small.optimizer == "adamw" and small.rate == 1e-3
    assert config_of(options(), 1) == TrainConfig(radius=8)
    with pytest.raises(ValueError, match="preset paper has 32 samples a step, which 3 processes"):
        config_of(options("--preset", "paper"), 3)


@pytest.mark.parametrize(
    "schedule, last", [("constant", 1.0), ("linear", 1 / 8), ("cosine", 0.0381)], ids=["constant", "linear", "cosine"]
)
def test_rates_rise_and_fall_without_a_lost_step(schedule: str, last: float):
    plan = TrainConfig(radius=2, steps=10, warm_up=3, schedule=schedule, rate=1.0)
    rates = [plan.rate_at(step) for step in range(10)]
    assert rates[:3] == pytest.approx([1 / 3, 2 / 3, 1])
    assert rates[9] == pytest.approx(last, abs=1e-3) and rates[9] > 0
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_a_run_says_where_it_began_and_writes_all_forms(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    forms = ["--rank", "4", *(word for form in ("merged", "delta", "lora") for word in ("--form", form))]
    assert train_in(tmp_path / "out", data, model, "--steps", "2", *forms) == 0
    said = capsys.readouterr()
    first = said.out.split("(mean squared): ")[1]
    undistilled, after_two = first.split(" before")[0], first.split("), ")[1].split(" after")[0]
    assert "(after step 0)" in said.out and float(undistilled) > 0
    for form, kind in (("", "replace"), ("_delta", "delta"), ("_lora", "lora")):
        file = read_clear_file(tmp_path / "out" / f"clear_local_2{form}.safetensors")
        assert file.kind == kind and "rank 4, 2 steps" in file.source and "tiny" in file.source
    assert train_in(tmp_path / "out", data, model, "--steps", "4", *forms) == 0
    said = capsys.readouterr()
    assert f"{after_two} before this run (after step 2)" in said.out, "the run's own start, not the model's"
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "flow" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "held_out" in line] == [2, 4]


def test_pictures_and_tensorboard_are_written(data: Path, model: Path, tmp_path: Path):
    pytest.importorskip("tensorboard")
    out = tmp_path / "out"
    assert train_in(out, data, model, "--steps", "2", "--pictures-every", "1", "--tensorboard") == 0
    from PIL import Image

    names = sorted(path.name for path in (out / "pictures").iterdir())
    assert names == [f"{kind}-{index}.png" for kind in ("step-0000001", "step-0000002", "teacher") for index in (0, 1)]
    drawn = {name: Image.open(out / "pictures" / name) for name in names}
    assert {picture.size for picture in drawn.values()} <= {(96, 64), (64, 96)}
    assert drawn["teacher-0.png"].tobytes() != drawn["step-0000002-0.png"].tobytes()
    events = list((out / "clear").rglob("events.out.tfevents*"))
    assert events and any(b"held_out" in path.read_bytes() and b"attention" in path.read_bytes() for path in events)


def test_pictures_without_a_vae_are_refused_before_the_model_is_read(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    alone = model / "transformer"
    assert train_in(tmp_path / "out", data, alone, "--steps", "2", "--pictures-every", "1") == 1
    assert "pictures_every is 1, but transformer has no VAE" in capsys.readouterr().err
    assert train_in(tmp_path / "out2", data, model, "--pictures-every", "1", "--held-out", "0") == 1
    assert "pictures_every needs held-out samples" in capsys.readouterr().err


def test_the_best_checkpoint_is_kept_besides_the_last_two(data: Path, tmp_path: Path):
    errors = iter([5.0, 1.0, 3.0, 4.0, 2.0])
    plan = TrainConfig(radius=2, steps=5, rate=1e-3)
    run(teacher(), data, plan, tmp_path, save_every=1, judge=lambda step: next(errors))
    assert [path.name[-1] for path in checkpoints(tmp_path)] == ["2", "4", "5"]
    assert best_of(tmp_path) == (2, 1.0)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_full_disk_leaves_whole_checkpoints_and_says_what_is_missing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
):
    import errno

    training = start(teacher(), data, TrainConfig(radius=2, steps=9, rate=1e-3))
    out = tmp_path / "out"
    train.distil(training, out, save_every=9)
    (kept,) = checkpoints(out)
    training.step = 10
    if when == "before":
        usage = disk.shutil.disk_usage(out)._replace(free=1000)
        monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: usage)
    else:

        def full(*args: Any, **kwargs: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(train.checkpoint, "save_file", full)
    with pytest.raises(disk.DiskFullError, match="checkpoint"):
        training.save(out)
    assert [path.name for path in out.iterdir()] == [kept.name]
    assert load_file(kept / "model.safetensors")


def test_steps_that_a_killed_run_had_logged_stand_once(tmp_path: Path):
    log = TrainingLog(tmp_path, writes=True)
    log.begin(0)
    for step in (1, 2, 3):
        log.write(step, {"flow": float(step)})
    with log.path.open("a") as file:
        file.write('{"step": 4, "fl')
    log.begin(2)
    log.write(3, {"flow": 30.0})
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert lines == [{"step": 1, "flow": 1.0}, {"step": 2, "flow": 2.0}, {"step": 3, "flow": 30.0}]
    TrainingLog(tmp_path / "other", writes=False).write(1, {})
    assert not (tmp_path / "other").exists()


def test_no_samples_are_made_for_a_model_that_cannot_be_taught(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """As FLUX.1 Fill: it takes a picture and a mask beside the latent."""
    import shutil

    fill = tmp_path / "fill"
    shutil.copytree(model, fill)
    config = fill / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 48, "out_channels": 16}))
    captions = tmp_path / "captions.txt"
    captions.write_text("a ball")
    arguments = ["generate", str(captions), "--model", str(fill), "--out", str(tmp_path / "out"), "--size", "32", "32"]
    assert command.main(arguments) == 1
    assert "the model takes 48 channels and gives 16" in capsys.readouterr().err


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Dynamo on, as in accelerate's configuration, which reads the environment once in a process."""
    from accelerate.state import AcceleratorState

    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def test_a_compiled_model_saves_what_was_trained(data: Path, tmp_path: Path, compiled: None):
    """Its names begin with ``_orig_mod``."""
    plan = TrainConfig(radius=2, down_factor=2, steps=2, batch=2, rate=1e-3)
    training = start(teacher(), data, plan)
    assert hasattr(training.student, "_orig_mod")
    train.distil(training, tmp_path / "compiled")
    stored = load_file(tmp_path / "compiled" / "checkpoint-0000002" / "model.safetensors")
    plain = start(teacher(), data, plan)
    plain.student = plain.pair.transformer
    for _ in range(2):
        plain.run_step()
    assert stored.keys() == plain.pair.trained().keys()
    for name, parameter in plain.pair.trained().items():
        torch.testing.assert_close(stored[name], parameter.detach(), rtol=0, atol=1e-6, msg=name)


def test_shapes_with_too_few_samples_are_told_before_the_training(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train_in(tmp_path / "out", data, model, "--steps", "1", "--batch", "8") == 0
    assert "A global batch has 8 samples of one shape" in capsys.readouterr().err


def test_a_lora_of_whole_weights_is_refused_before_the_training(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train_in(tmp_path / "out", data, model, "--steps", "1", "--form", "merged", "--form", "lora") == 1
    assert "form is 'lora', but whole weights are trained" in capsys.readouterr().err
    assert not (tmp_path / "out").exists(), "no step was run for nothing"


def test_a_run_that_cannot_begin_does_not_claim_the_folder(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from safetensors.torch import save_file

    others = tmp_path / "others"
    others.mkdir()
    for path in data.glob("*.safetensors"):
        tensors = load_file(path)
        save_file(tensors | {"pooled": torch.ones(5)}, others / path.name)
    assert train_in(tmp_path / "out", others, model, "--steps", "1") == 1
    assert "is a sample for another model" in capsys.readouterr().err
    assert train_in(tmp_path / "out", data, model, "--steps", "1") == 0


def test_checkpoints_without_a_record_are_refused(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Nobody would notice other samples or another model."""
    out = tmp_path / "out"
    assert train_in(out, data, model, "--steps", "1") == 0
    (out / "training.json").unlink()
    assert train_in(out, data, model, "--steps", "2", "--guidance", "2") == 1
    assert "holds checkpoints, and no training.json" in capsys.readouterr().err


def test_a_model_that_was_downloaded_for_the_run_is_the_same_one_afterwards(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its content is known only when it is here."""
    from clear_core.distill import model_content
    from clear_core.distill.commands import train as train_command

    here: list[bool] = []
    load = train_command.load_transformer

    def download(options: argparse.Namespace) -> Any:
        here.append(True)
        return load(options)

    monkeypatch.setattr(train_command, "load_transformer", download)
    monkeypatch.setattr(model_content, "content_of", lambda name: "digest" if here else name)
    assert train_in(tmp_path / "out", data, model, "--steps", "1", "--download") == 0
    assert train_in(tmp_path / "out", data, model, "--steps", "2", "--download") == 0
    assert train_in(tmp_path / "out", data, model, "--steps", "3") == 0
