"""The commands ``images`` and ``generate``, with a whole tiny pipeline: what they refuse before a model is loaded, how
they go on, and several processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from clear_core.distill import __main__ as command
from clear_core.distill.commands import samples as commands
from clear_core.distill.samples import SampleFolder
from tests.support import PROJECT

pytest.importorskip("accelerate")
pytest.importorskip("tqdm")
pytest.importorskip("PIL")

from PIL import Image

from tests.support.launch import free_port
from tests.support.tiny_pipeline import save_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    save_pipeline(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Five pictures in two shapes, one of them without a caption."""
    return draw_pictures(tmp_path / "pictures")


def draw_pictures(folder: Path) -> Path:
    folder.mkdir()
    chance = np.random.default_rng(0)
    for index, name in enumerate("bcdef"):
        sides = (64, 48) if index % 2 else (64, 64)
        Image.fromarray(chance.integers(0, 256, (*sides, 3), dtype=np.uint8)).save(folder / f"{name}.png")
        if index:
            (folder / f"{name}.txt").write_text(f"a {name}")
    return folder


def images(pictures: Path, out: Path, model: Path, /, **changed: object) -> list[str]:
    options = {"out": out, "model": model, "pixels": 64, "dtype": "float32"} | changed
    return ["images", str(pictures), *(each for key, value in options.items() for each in (f"--{key}", str(value)))]


def generate(captions: Path, out: Path, model: Path, /, **changed: object) -> list[str]:
    options = {"out": out, "model": model, "steps": 2, "seed": 3, "guidance": 2.5, "dtype": "float32"} | changed
    given = [each for key, value in options.items() for each in (f"--{key}", str(value))]
    return ["generate", str(captions), *given, "--size", "32", "48"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    return write_captions(tmp_path / "captions.txt")


def write_captions(path: Path) -> Path:
    path.write_text("a cat\na dog\n\na mouse\n", encoding="utf-16")
    return path


@pytest.fixture(scope="module")
def made(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with samples of the pictures in ``images`` and of the captions in ``generate``."""
    folder = tmp_path_factory.mktemp("made")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # As the processes of a launch have it: sums then have the same order.
    assert command.main(images(draw_pictures(folder / "pictures"), folder / "images", model)) == 0
    assert command.main(generate(write_captions(folder / "captions.txt"), folder / "generate", model)) == 0
    torch.set_num_threads(threads)
    return folder


def never_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(options: object) -> object:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr(commands, "load_pipeline", load)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert command.main(arguments) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_pictures_become_samples_of_their_own_captions(
    pictures: Path, tmp_path: Path, model: Path, made: Path, monkeypatch: pytest.MonkeyPatch
):
    samples = SampleFolder(made / "images")
    parts, mask = samples.load([0, 2, 4])
    assert parts["latents"].shape == (3, 4, 8, 8) and parts["prompt_embeds"].shape == (3, 512, 8) and mask is None
    assert parts["pooled"].unique(dim=0).shape == (3, 8)
    before = contents(made / "images")
    assert set(before) == {*(f"000000{i}.safetensors" for i in range(5)), "samples.json"}
    # A stop in the middle, and the same pictures in another place.
    out = shutil.copytree(made / "images", tmp_path / "out")
    (out / "0000001.safetensors").unlink()
    assert command.main(images(pictures, out, model)) == 0
    assert contents(out) == before
    never_loaded(monkeypatch)
    assert command.main(images(pictures, out, model)) == 0, "nothing is left to do"


def test_damaged_pictures_are_named_before_the_model_is_loaded(
    pictures: Path, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (pictures / "a.jpg").write_bytes(b"")
    (pictures / "c.png").write_bytes((pictures / "c.png").read_bytes()[:-300])
    with monkeypatch.context() as patch:
        never_loaded(patch)
        told = refused(images(pictures, tmp_path / "out", model), capsys)
        assert told.startswith("2 of 6 pictures cannot be used: a.jpg is empty; c.png cannot be decoded (")
        (tmp_path / "none.txt").write_text("\n")
        assert "none.txt holds no captions" in refused(generate(tmp_path / "none.txt", tmp_path / "out", model), capsys)
        assert "pixels is 8; expected" in refused(images(pictures, tmp_path / "out", model, pixels=8), capsys)
        assert "steps is 0; expected" in refused(generate(tmp_path / "none.txt", tmp_path, model, steps=0), capsys)
        assert not (tmp_path / "out").exists()
    assert command.main([*images(pictures, tmp_path / "out", model), "--skip-damaged"]) == 0
    told = capsys.readouterr().err
    assert "Going on without 2 of 6 pictures: a.jpg is empty; c.png cannot" in told
    assert "1 of 4 pictures have no caption, and get an empty text: b.png." in told
    assert len(SampleFolder(tmp_path / "out")) == 4


def add(pictures: Path) -> None:
    shutil.copy(pictures / "d.png", pictures / "cc.png")


def remove(pictures: Path) -> None:
    (pictures / "d.png").unlink()


def edit(pictures: Path) -> None:
    with Image.open(pictures / "d.png") as image:
        image.rotate(180).save(pictures / "d.png")


def retell(pictures: Path) -> None:
    (pictures / "d.txt").write_text("a dog")


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (add, {}, "made from something else: cc.png is new;"),
        (remove, {}, "made from something else: d.png is gone;"),
        (edit, {}, "made from something else: d.png has another content;"),
        (retell, {}, "made from something else: d.png has another caption;"),
        (None, {"pixels": 48}, "made with pixels 64, and now it is 48;"),
        (None, {"dtype": "bfloat16"}, "made with dtype float32, and now it is bfloat16;"),
        (None, {"model": None}, "made with model "),
    ],
    ids=["added", "removed", "edited", "another caption", "pixels", "dtype", "model"],
)
def test_going_on_with_other_pictures_or_settings_is_refused(
    pictures: Path,
    tmp_path: Path,
    model: Path,
    made: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path], None] | None,
    options: dict[str, object],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
):
    out = shutil.copytree(made / "images", tmp_path / "out")
    (out / "0000004.safetensors").unlink()
    if change is not None:
        change(pictures)
    if "model" in options:
        save_pipeline(tmp_path / "other", seed=1)
        options = {"model": tmp_path / "other"}
    before = contents(out)
    never_loaded(monkeypatch)
    told = refused(images(pictures, out, model, **options), capsys)
    assert words in told and told.endswith("or choose another folder.") and contents(out) == before


@pytest.mark.parametrize("name, value", [("steps", 3), ("seed", 4), ("guidance", 3.5), ("size", None), ("text", None)])
def test_going_on_with_other_images_of_the_teacher_is_refused(
    captions: Path,
    tmp_path: Path,
    model: Path,
    made: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: object,
):
    out = shutil.copytree(made / "generate", tmp_path / "out")
    arguments = generate(captions, out, model)
    before = contents(out)
    assert len(SampleFolder(out)) == 3 and command.main(arguments) == 0 and contents(out) == before
    if name == "size":
        told, words = refused([*arguments[:-2], "32", "32"], capsys), "made with width 48, and now it is 32;"
    elif name == "text":
        captions.write_text("a cat\na hog\na mouse\n")
        told, words = refused(arguments, capsys), "something else: caption 2 has another caption;"
    else:
        told = refused(generate(captions, out, model, **{name: value}), capsys)
        words = f"made with {name} {arguments[arguments.index(f'--{name}') + 1]}, and now it is {value};"
    assert words in told and contents(out) == before


def test_too_little_room_is_said_after_the_first_sample(
    captions: Path, tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 40_000))
    told = refused(generate(captions, tmp_path / "out", model), capsys)
    # Each has 512 x 8 + 8 numbers of text, 4 x 4 x 6 of the latent, and a header.
    assert "3 samples need 51." in told and "kB in " in told and "40.0 kB are free there" in told
    assert list(contents(tmp_path / "out")) == ["samples.json"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="two processes of a launch would share one card")
@pytest.mark.parametrize("kind", ["images", pytest.param("generate", marks=pytest.mark.slow)])
def test_two_processes_make_what_one_makes(
    pictures: Path, captions: Path, tmp_path: Path, model: Path, made: Path, kind: str
):
    out = tmp_path / "out"
    arguments = images(pictures, out, model) if kind == "images" else generate(captions, out, model)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    result = subprocess.run(
        [sys.executable, *launcher, "-m", "clear_core.distill", *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stderr.count("have no caption") == (kind == "images"), "said once, not by each process"
    share = 3 if kind == "images" else 2  # Of five and of three.
    assert re.search(rf"(?m)^1 of 2 processes: {share} of {share} samples in", result.stderr)
    assert "2 of 2 processes" not in result.stderr and "%|" not in result.stderr
    assert contents(made / kind) == contents(out)
