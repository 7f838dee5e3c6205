"""Nothing goes on with something else: other settings, another model, other samples, another held-out set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from clear_core.distill import __main__ as command
from tests.support.tiny_pipeline import save_pipeline
from tests.support.train_command import train_in

CHANGES: dict[str, tuple[list[str], str]] = {
    "radius": (["--radius", "3"], "begun with radius 2, and now it is 3"),
    "rank": (["--rank", "2"], "begun with rank None, and now it is 2"),
    "dtype": (["--dtype", "bfloat16"], "begun with dtype float32, and now it is bfloat16"),
    "seed": (["--seed", "7"], "begun with seed 0, and now it is 7"),
    "guidance": (["--guidance", "2"], "begun with guidance None, and now it is 2.0"),
    "held-out set": (["--held-out", "3"], "begun with samples 10, and now it is 9"),
    "base": (["--base", "nf4"], "begun with base plain, and now it is nf4"),
    "optimizer": (["--optimizer", "prodigy"], "begun with optimizer adamw, and now it is prodigy"),
    "batch": (["--batch", "2"], "begun with batch 1, and now it is 2"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_going_on_with_another_setting_is_refused_by_name(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
):
    assert train_in(tmp_path / "out", data, model, "--steps", "1") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}
    capsys.readouterr()
    more, words = CHANGES[change]
    assert train_in(tmp_path / "out", data, model, "--steps", "2", *more) == 1
    assert words in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()} == before


def test_another_model_or_other_samples_of_the_same_name_are_refused(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import shutil

    mine = tmp_path / "tiny"
    save_pipeline(mine, seed=1)
    assert train_in(tmp_path / "out", data, mine, "--steps", "1") == 0
    shutil.rmtree(mine)
    save_pipeline(mine, seed=2)
    assert train_in(tmp_path / "out", data, mine, "--steps", "2") == 1
    assert "begun with another model" in capsys.readouterr().err
    shutil.rmtree(mine)
    save_pipeline(mine, seed=1)
    sample = sorted(data.glob("*.safetensors"))[0]
    tensors = load_file(sample)
    from safetensors.torch import save_file

    tensors["latents"][0, 0, 0] += 1
    save_file(tensors, sample)
    assert train_in(tmp_path / "out", data, mine, "--steps", "2") == 1
    assert "begun with another sample content" in capsys.readouterr().err


def test_weights_are_judged_on_what_their_training_held_out(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert train_in(tmp_path / "out", data, model, "--steps", "1") == 0
    weights = tmp_path / "out" / "clear_local_2.safetensors"
    evaluate = ["evaluate", "--model", str(model), "--data", str(data), "--weights", str(weights), "--dtype", "float32"]
    capsys.readouterr()
    assert command.main([*evaluate, "--held-out", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["mean"] > 0
    assert command.main([*evaluate, "--held-out", "4"]) == 1
    assert (
        "these are not the 2 samples that the training of clear_local_2.safetensors held out" in capsys.readouterr().err
    )
    moved = weights.rename(tmp_path / weights.name)
    evaluate[evaluate.index(str(weights))] = str(moved)
    assert command.main([*evaluate, "--held-out", "4"]) == 0
    assert "nobody knows whether it was trained with these samples" in capsys.readouterr().err
