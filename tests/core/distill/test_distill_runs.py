"""Whole distillations: stopping, resuming and sharing the work change nothing."""

from __future__ import annotations

import dataclasses
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clear_core.distill import __main__ as command
from clear_core.distill import train as training
from clear_core.distill.checkpoint import best_of, still_to_fit
from clear_core.distill.config import TrainConfig, check_config, checkpoints
from clear_core.distill.losses import Losses
from clear_core.distill.samples import SampleFolder
from tests.support import PROJECT
from tests.support.distillation import run, start, teacher

MODES: dict[str, tuple[dict[str, object], dict[str, bool]]] = {
    "whole weights": ({}, {}),
    "accumulated": ({"accumulation": 2}, {}),
    "prodigy": ({"optimizer": "prodigy", "rate": 1.0}, {}),
    "8-bit states": ({"optimizer": "adamw8bit"}, {}),
    "rank": ({"rank": 4, "schedule": "cosine"}, {}),
    "rank on fp8": ({"rank": 4, "base": "fp8"}, {"checkpointing": True}),
    "rank on nf4, offloaded": ({"rank": 4, "base": "nf4"}, {"offload": True}),
}


@pytest.mark.parametrize("mode", MODES)
def test_killed_and_resumed_is_uninterrupted(data: Path, tmp_path: Path, mode: str):
    values, options = MODES[mode]
    library = {"prodigy": "prodigyopt", "adamw8bit": "bitsandbytes", "fp8": "torchao", "nf4": "bitsandbytes"}
    for value in values.values():
        pytest.importorskip(library.get(str(value), "torch"))
    model = teacher()
    plan = TrainConfig(**{"radius": 2, "down_factor": 2, "steps": 6, "batch": 2, "rate": 1e-3, "warm_up": 3, **values})
    whole = run(model, data, plan, tmp_path / "whole", save_every=2, **options)
    fatal = random.randrange(1, plan.steps)

    def kill(step: int, losses: dict[str, float]) -> None:
        if step == fatal:
            # A process that dies while it saves leaves this.
            (out / "checkpoint.part").mkdir(exist_ok=True)
            (out / "checkpoint.part" / "model.safetensors").write_bytes(b"half")
            raise KeyboardInterrupt

    out = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        run(model, data, plan, out, save_every=2, on_step=kill, **options)
    resumed = run(model, data, plan, out, save_every=2, **options)
    fresh = start(model, data, plan).pair.trained()
    assert sum(not torch.equal(tensor, fresh[name]) for name, tensor in whole.items()) > len(fresh) / 2
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), f"{name}, killed after step {fatal}"
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-0000004", "checkpoint-0000006"]


def test_accumulated_passes_equal_one_large_batch(data: Path, tmp_path: Path):
    model = teacher()
    one = run(model, data, TrainConfig(radius=2, steps=2, batch=4, rate=1e-3), tmp_path / "one")
    two = run(model, data, TrainConfig(radius=2, steps=2, batch=2, accumulation=2, rate=1e-3), tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-5, msg=name)


def test_another_plan_does_not_go_on_in_an_old_folder(tmp_path: Path):
    check_config(tmp_path, TrainConfig(radius=8, steps=10), 1, {"samples": 5})
    check_config(tmp_path, TrainConfig(radius=8, steps=20), 1, {"samples": 5})
    with pytest.raises(ValueError, match="begun with radius 8, and now it is 16"):
        check_config(tmp_path, TrainConfig(radius=16, steps=20), 1, {"samples": 5})


def test_fewer_steps_than_were_run_are_refused(data: Path, tmp_path: Path):
    """They would end at once, and the weights of more steps be written under the name of fewer."""
    check_config(tmp_path, TrainConfig(radius=2, steps=4), 1, {"samples": 5})
    run(teacher(), data, TrainConfig(radius=2, steps=4, rate=1e-3), tmp_path)
    with pytest.raises(ValueError, match="steps is 3, but the distillation in .* has run for 4; set steps to 4"):
        check_config(tmp_path, TrainConfig(radius=2, steps=3), 1, {"samples": 5})
    check_config(tmp_path, TrainConfig(radius=2, steps=4), 1, {"samples": 5})


@pytest.mark.parametrize(
    "text, words", [("{", "cannot be read as JSON"), ("[1]", "holds no settings")], ids=["cut", "list"]
)
def test_a_damaged_memory_of_a_folder_is_named(tmp_path: Path, text: str, words: str):
    (tmp_path / "training.json").write_text(text)
    with pytest.raises(ValueError, match=f"training.json {words}.* choose another folder"):
        check_config(tmp_path, TrainConfig(radius=2), 1, {"samples": 5})
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


def test_weights_that_are_not_finite_become_no_checkpoint(data: Path, tmp_path: Path):
    """The losses of the step that breaks them are finite, and the next step's come after the checkpoint."""
    plan = TrainConfig(radius=2, steps=3, rate=1e-3)
    judged: list[int] = []

    def spoil(step: int, losses: dict[str, float]) -> None:
        if step == 3:
            next(iter(training_now.pair.trained().values())).data.view(-1)[-1] = math.nan

    training_now = start(teacher(), data, plan)
    with pytest.raises(ValueError, match="the weights are not finite after step 3. The checkpoints are as they were"):
        training.distil(
            training_now, tmp_path, save_every=1, on_step=spoil, judge=lambda step: judged.append(step) or 1.0 / step
        )
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-0000001", "checkpoint-0000002"]
    assert judged == [1, 2]


def test_an_error_that_is_not_finite_is_not_the_best(data: Path, tmp_path: Path):
    errors = iter([1.0, math.nan, 2.0, math.inf])
    run(teacher(), data, TrainConfig(radius=2, steps=4), tmp_path, save_every=1, judge=lambda step: next(errors))
    assert best_of(tmp_path) == (1, 1.0) and checkpoints(tmp_path)[0].name == "checkpoint-0000001"


DAMAGE = {
    "weights cut off": (
        "checkpoint-0000002/model.safetensors",
        "the checkpoint .*checkpoint-0000002 is damaged .*remove",
    ),
    "state gone": (
        "checkpoint-0000002/optimizer.safetensors",
        "the checkpoint .*checkpoint-0000002 is damaged .*remove",
    ),
    "values cut off": ("checkpoint-0000002/optimizer.json", "the checkpoint .*checkpoint-0000002 is damaged .*remove"),
    "values empty": ("checkpoint-0000002/optimizer.json", "the checkpoint .*checkpoint-0000002 is damaged .*remove"),
    "best cut off": ("best.json", "best.json is damaged, .*remove it"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(data: Path, tmp_path: Path, damage: str):
    plan = TrainConfig(radius=2, steps=2, rate=1e-3)
    run(teacher(), data, plan, tmp_path, save_every=1, judge=lambda step: 1.0)
    name, words = DAMAGE[damage]
    (tmp_path / name).unlink() if "gone" in damage else (tmp_path / name).write_bytes(
        b"{}" if "empty" in damage else b"{"
    )
    more = dataclasses.replace(plan, steps=3)
    with pytest.raises(ValueError, match=words):
        run(teacher(), data, more, tmp_path, judge=lambda step: 1.0)
    (tmp_path / name).unlink() if name == "best.json" else shutil.rmtree((tmp_path / name).parent)
    run(teacher(), data, more, tmp_path, judge=lambda step: 1.0)
    assert checkpoints(tmp_path)[-1].name == "checkpoint-0000003"


@pytest.mark.parametrize("optimizer", ["adamw", "prodigy"])
def test_the_room_for_all_checkpoints_is_asked_for_before_the_first_step(data: Path, tmp_path: Path, optimizer: str):
    pytest.importorskip({"prodigy": "prodigyopt"}.get(optimizer, "torch"))
    plan, out = TrainConfig(radius=2, steps=5, optimizer=optimizer), tmp_path / "out"
    most: list[int] = []

    def count(step: int) -> float:
        most.append(sum(path.is_dir() for path in out.iterdir()) + 1)
        return float(step)

    begun = start(teacher(), data, plan)
    assert [still_to_fit(out, 5, every, True) for every in (1, 2, 5)] == [4, 3, 1]
    training.distil(begun, out, save_every=1, judge=count)
    assert max(most) == 4, "two kept ones, the best, and the one being written"
    assert still_to_fit(out, 5, 1, True) == 0 and still_to_fit(out, 9, 1, True) == 1
    (newest,) = checkpoints(out)[-1:]
    files = [load_file(newest / name) for name in ("model.safetensors", "optimizer.safetensors")]
    size = sum(tensor.nbytes for tensors in files for tensor in tensors.values())
    assert size == pytest.approx(begun.checkpoint_bytes, rel=0.01)


def test_a_copy_of_a_checkpoint_is_left_alone(data: Path, tmp_path: Path):
    plan, out = TrainConfig(radius=2, steps=1, rate=1e-3), tmp_path / "out"
    run(teacher(), data, plan, out)
    shutil.copytree(out / "checkpoint-0000001", out / "checkpoint-0000001 (copy)")
    run(teacher(), data, dataclasses.replace(plan, steps=4), out, save_every=1)
    names = sorted(path.name for path in out.iterdir())
    assert names == ["checkpoint-0000001 (copy)", "checkpoint-0000003", "checkpoint-0000004"]


def test_a_checkpoint_of_another_rank_is_refused(data: Path, tmp_path: Path):
    plan = TrainConfig(radius=2, steps=1, rank=4)
    run(teacher(), data, plan, tmp_path)
    with pytest.raises(ValueError, match=r"of another training \(.* has the shape \(4, 32\), expected \(3, 32\)\)"):
        run(teacher(), data, dataclasses.replace(plan, rank=3), tmp_path)


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
        ({"seed": 1 << 63}, "seed is 9223372036854775808; expected a whole number"),
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
