"""Whole distillations: stopping, resuming and sharing the work change nothing."""

from __future__ import annotations

import dataclasses
import math
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clear_core import ClearSpec
from clear_core.distill import __main__ as command
from clear_core.distill import train as training
from clear_core.distill.config import TrainConfig, check_config
from clear_core.distill.losses import Losses
from clear_core.distill.samples import SampleFolder
from clear_core.distill.student import trained_set
from tests.support import PROJECT
from tests.support.distillation import run, teacher


@pytest.mark.parametrize("optimizer, accumulation", [("adamw", 1), ("adamw", 2), ("prodigy", 1)])
def test_killed_and_resumed_is_uninterrupted(data: Path, tmp_path: Path, optimizer: str, accumulation: int):
    if optimizer == "prodigy":
        pytest.importorskip("prodigyopt")
    model = teacher()
    plan = TrainConfig(
        radius=2,
        down_factor=2,
        steps=6,
        batch=2,
        accumulation=accumulation,
        optimizer=optimizer,
        rate=1.0 if optimizer == "prodigy" else 1e-3,
        warm_up=3,
    )
    whole = run(model, data, plan, tmp_path / "whole", save_every=2)
    fatal = random.randrange(1, plan.steps)

    def kill(step: int, losses: dict[str, float]) -> None:
        if step == fatal:
            # A process that dies while it saves leaves this.
            (out / "checkpoint.part").mkdir(exist_ok=True)
            (out / "checkpoint.part" / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    out = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        run(model, data, plan, out, save_every=2, on_step=kill)
    resumed = run(model, data, plan, out, save_every=2)
    assert not torch.equal(
        whole["single_transformer_blocks.0.attn.to_q.weight"],
        model.state_dict()["single_transformer_blocks.0.attn.to_q.weight"],
    )
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), f"{name}, killed after step {fatal}"
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-0000004", "checkpoint-0000006"]


def test_accumulated_passes_equal_one_large_batch(data: Path, tmp_path: Path):
    model = teacher()
    one = run(model, data, TrainConfig(radius=2, steps=2, batch=4, rate=1e-3), tmp_path / "one")
    two = run(model, data, TrainConfig(radius=2, steps=2, batch=2, accumulation=2, rate=1e-3), tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-5, msg=name)


def free_port() -> str:
    with socket.socket() as open_socket:
        open_socket.bind(("127.0.0.1", 0))
        return str(open_socket.getsockname()[1])


def test_two_processes_equal_one_with_twice_the_batch(data: Path, tmp_path: Path):
    teacher().save_pretrained(tmp_path / "teacher")

    def launch(name: str, processes: int, batch: int) -> dict[str, torch.Tensor]:
        launcher = (
            []
            if processes == 1
            else ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", free_port()]
        )
        arguments = [
            "-m",
            "clear_core.distill",
            "train",
            "--model",
            str(tmp_path / "teacher"),
            "--data",
            str(data),
            "--out",
            str(tmp_path / name),
            "--radius",
            "2",
            "--down-factor",
            "2",
            "--steps",
            "3",
            "--batch",
            str(batch),
            "--rate",
            "1e-3",
            "--dtype",
            "float32",
            "--cpu",
            "--held-out",
            "2",
        ]
        result = subprocess.run(
            [sys.executable, *launcher, *arguments],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            timeout=300,
        )
        assert result.returncode == 0, result.stderr[-2000:]
        assert "on 2 held-out samples" in result.stdout
        return load_file(tmp_path / name / "checkpoint-0000003" / "model.safetensors")

    one, two = launch("one", 1, 4), launch("two", 2, 2)
    before = teacher().state_dict()
    assert one.keys() == two.keys() == set(trained_set(teacher(), ClearSpec(2, 2)))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-5, msg=name)
    moved = one["transformer_blocks.0.attn.to_q.weight"] - before["transformer_blocks.0.attn.to_q.weight"]
    assert moved.abs().max() > 1e-3


def test_another_plan_does_not_go_on_in_an_old_folder(tmp_path: Path):
    check_config(tmp_path, TrainConfig(radius=8, steps=10), 1, 5)
    check_config(tmp_path, TrainConfig(radius=8, steps=20), 1, 5)
    with pytest.raises(ValueError, match="begun with radius 8, and now it is 16"):
        check_config(tmp_path, TrainConfig(radius=16, steps=20), 1, 5)


def test_fewer_steps_than_were_run_are_refused(data: Path, tmp_path: Path):
    """They would end at once, and the weights of more steps be written under the name of fewer."""
    check_config(tmp_path, TrainConfig(radius=2, steps=4), 1, 5)
    run(teacher(), data, TrainConfig(radius=2, steps=4, rate=1e-3), tmp_path)
    with pytest.raises(ValueError, match="steps is 3, but the distillation in .* has run for 4; set steps to 4"):
        check_config(tmp_path, TrainConfig(radius=2, steps=3), 1, 5)
    check_config(tmp_path, TrainConfig(radius=2, steps=4), 1, 5)


@pytest.mark.parametrize(
    "text, words", [("{", "cannot be read as JSON"), ("[1]", "holds no settings")], ids=["cut", "list"]
)
def test_a_damaged_memory_of_a_folder_is_named(tmp_path: Path, text: str, words: str):
    (tmp_path / "training.json").write_text(text)
    with pytest.raises(ValueError, match=f"training.json {words}.* choose another folder"):
        check_config(tmp_path, TrainConfig(radius=2), 1, 5)
    assert (tmp_path / "training.json").read_text() == text


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_saved(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan, model = TrainConfig(radius=2, steps=6, rate=1e-3), teacher()
    losses = training.distillation_losses
    calls: list[int] = []

    def failing(*args: object, **kwargs: object) -> Losses:
        calls.append(1)
        found = losses(*args, **kwargs)
        return found if len(calls) < 6 else dataclasses.replace(found, distill=found.distill * math.nan)

    monkeypatch.setattr(training, "distillation_losses", failing)
    with pytest.raises(ValueError, match="the distill loss of step 6 is nan; expected a finite number"):
        run(model, data, plan, tmp_path / "out", save_every=2)
    kept = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in kept] == ["checkpoint-0000002", "checkpoint-0000004"]
    for folder in kept:
        assert all(tensor.isfinite().all() for tensor in load_file(folder / "model.safetensors").values())


def test_a_rate_that_nobody_named_is_the_optimizers():
    """Prodigy's is a factor on the rate that it finds: with AdamW's 1e-4 it would train nothing."""
    plans = [TrainConfig(radius=2, optimizer=name) for name in ("adamw", "prodigy")]
    assert [plan.rate_at(0) for plan in plans] == [1e-4, 1.0]
    assert TrainConfig(radius=2, optimizer="prodigy", rate=0.5).rate_at(0) == 0.5
    assert plans[1] == TrainConfig(radius=2, optimizer="prodigy", rate=1.0)


def test_a_held_out_set_that_takes_all_samples_is_refused(data: Path):
    count = len(SampleFolder(data))
    with pytest.raises(ValueError, match=f"holds {count} samples, and all of them are held out.* less than {count}"):
        SampleFolder(data, end=-count)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"rate": float("inf")}, "rate is inf"),
        ({"steps": 0}, "steps is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'"),
        ({"rate": 0.0}, "rate is 0.0"),
    ],
    ids=lambda v: str(v),
)
def test_bad_plans_are_refused_in_words(values: dict[str, object], words: str):
    with pytest.raises(ValueError, match=words):
        TrainConfig(**{"radius": 8, **values})


def test_bad_radius_on_the_command_line_is_one_sentence(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    status = command.main(["train", "--model", "x", "--data", str(data), "--out", str(tmp_path / "o"), "--radius", "0"])
    assert status == 1 and "radius is 0; expected an integer of at least 1" in capsys.readouterr().err


def test_help_needs_neither_accelerate_nor_diffusers():
    code = (
        "import sys; sys.modules.update(accelerate=None, diffusers=None, tqdm=None); "
        "from clear_core.distill.__main__ import main; main(['train', '--help'])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert result.returncode == 0 and "--radius" in result.stdout
