"""Samples that cannot be trained with: refused in one sentence when their folder is opened."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clear_core.distill import __main__ as command
from clear_core.distill.prepare import captioned_pictures, samples_from_teacher
from clear_core.distill.samples import SampleFolder, write_sample

GOOD = {"latents": (4, 8, 12), "prompt_embeds": (3, 8), "pooled": (8,)}
Change = Callable[[dict[str, torch.Tensor]], None]


def parts() -> dict[str, torch.Tensor]:
    return {name: torch.ones(shape) for name, shape in GOOD.items()}


def part(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return parts() | {name: tensor}


def with_value(name: str, value: float, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    made = parts()
    made[name] = made[name].to(dtype)
    made[name].view(-1)[-1] = value
    return made


BAD = {
    "a batch": (part("latents", torch.ones(1, 4, 8, 12)), "latents has shape"),
    "one channel too flat": (part("latents", torch.ones(8, 12)), "latents has shape"),
    "odd sides": (part("latents", torch.ones(4, 7, 12)), "latents has shape .*even"),
    "nothing": (part("latents", torch.ones(4, 0, 12)), "latents has shape"),
    "no text": (part("prompt_embeds", torch.ones(0, 8)), "prompt_embeds has shape"),
    "text in a batch": (part("prompt_embeds", torch.ones(1, 3, 8)), "prompt_embeds has shape"),
    "pooled in a batch": (part("pooled", torch.ones(1, 8)), "pooled has shape"),
    "a single number": (part("pooled", torch.tensor(1.0)), "pooled has shape"),
    "integers": (part("latents", torch.ones(4, 8, 12, dtype=torch.int64)), "latents is int64"),
    "truth values": (part("pooled", torch.ones(8, dtype=torch.bool)), "pooled is bool"),
    "complex numbers": (part("pooled", torch.ones(8, dtype=torch.complex64)), "pooled is complex64"),
    "NaN": (with_value("latents", math.nan), "latents has NaN"),
    "infinity in 16 bits": (with_value("prompt_embeds", -math.inf, torch.bfloat16), "prompt_embeds has NaN or inf"),
    "too large for float32": (with_value("pooled", 1e300, torch.float64), "pooled has NaN or infinite"),
    "a part missing": ({name: torch.ones(shape) for name, shape in list(GOOD.items())[:2]}, "pooled"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_folder_with_a_bad_sample_is_refused_when_it_is_opened(data: Path, kind: str):
    tensors, named = BAD[kind]
    save_file(tensors, data / "0000007.safetensors")
    with pytest.raises(ValueError, match=rf"^0000007\.safetensors is not a sample \(.*{named}") as error:
        SampleFolder(data)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize("kind", [kind for kind in BAD if kind != "a part missing"])
def test_a_bad_sample_is_not_written(tmp_path: Path, kind: str):
    tensors, named = BAD[kind]
    with pytest.raises(ValueError, match=rf"^0000003\.safetensors was not written: {named}"):
        write_sample(tmp_path, 3, *tensors.values())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "tensor", "named"),
    [
        ("latents", torch.ones(1, 8, 12), "channels is 1, not 4"),
        ("prompt_embeds", torch.ones(3, 1), "text width is 1, not 8"),
        ("pooled", torch.ones(1), "pooled width is 1, not 8"),
    ],
)
def test_a_width_that_differs_is_refused(data: Path, name: str, tensor: torch.Tensor, named: str):
    """A single channel or number would be broadcast."""
    save_file(part(name, tensor), data / "0000007.safetensors")
    with pytest.raises(ValueError, match=rf"^0000007\.safetensors is not .* 0000000\.safetensors: .*{named}"):
        SampleFolder(data)


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def a_folder(path: Path) -> None:
    path.mkdir()


def a_socket(path: Path) -> None:
    os.chdir(path.parent)  # A socket's path must be short.
    socket.socket(socket.AF_UNIX).bind(path.name)


def a_dead_link(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system here")
@pytest.mark.parametrize("make", [a_pipe, a_link_to_a_pipe, a_folder, a_socket, a_dead_link])
def test_what_is_no_file_is_not_waited_for(data: Path, make: Callable[[Path], None], monkeypatch):
    monkeypatch.chdir(data)
    make(data / "0000020.safetensors")
    with pytest.raises(ValueError, match=r"^0000020\.safetensors is not a sample \(it is not a file\)"):
        SampleFolder(data)
    pictures = data / "pictures"
    pictures.mkdir()
    make(pictures / "a.png")
    (pictures / "b.png").touch()
    (pictures / "b.txt").mkdir()
    assert [(path.name, text) for path, text in captioned_pictures(pictures)] == [("b.png", "")]


def test_companions_of_a_mac_are_no_samples(data: Path):
    (data / "._0000001.safetensors").write_bytes(b"\0\5\26\7")
    assert len(SampleFolder(data)) == 12
    (data / "._a.png").touch()
    (data / "a.png").touch()
    assert [path.name for path, _ in captioned_pictures(data)] == ["a.png"]


def test_shapes_are_those_of_the_parts(data: Path):
    shapes = SampleFolder(data).shapes
    assert shapes[0] == ((4, 12, 8), (3, 8), (8,)) and len(set(shapes)) == 2


@pytest.mark.parametrize(
    ("name", "named"), [("latents", "channels is 8"), ("prompt_embeds", "text width is 16"), ("pooled", "pooled width")]
)
def test_samples_of_another_model_are_refused_before_the_training(data: Path, tmp_path: Path, capsys, name, named):
    """On the command line: a folder that is all right by itself."""
    pytest.importorskip("diffusers")
    pytest.importorskip("accelerate")
    from tests.support.distillation import teacher

    for path in data.iterdir():
        tensors = load_file(path)
        axis = 0 if name != "prompt_embeds" else 1
        tensors[name] = torch.cat([tensors[name]] * 2, axis)
        save_file(tensors, path)
    teacher().save_pretrained(tmp_path / "teacher")
    common = ["--model", str(tmp_path / "teacher"), "--data", str(data), "--dtype", "float32", "--held-out", "2"]
    train = ["train", *common, "--out", str(tmp_path / "out"), "--radius", "2", "--steps", "1", "--cpu"]
    for arguments in (train, ["evaluate", *common, "--radius", "2"]):
        assert command.main(arguments) == 1
        told = capsys.readouterr().err.strip().splitlines()[-1]
        assert "is a sample for another model" in told and named in told and told.endswith(".")


@pytest.mark.parametrize(
    "changed",
    [{"size": (32, 40)}, {"size": (0, 32)}, {"steps": 0}, {"guidance": math.nan}, {"steps": math.nan}],
    ids=str,
)
def test_numbers_are_checked_before_the_first_picture(tmp_path: Path, changed: dict[str, object]):
    options = {"size": (32, 48), "steps": 4, "guidance": 2.5, "seed": 9, **changed}
    with pytest.raises(ValueError, match=r"^(height|width|steps|guidance) is .*; expected "):
        next(samples_from_teacher(None, ["a"], tmp_path, **options))
