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
from clear_core.distill.inputs import sources_of
from clear_core.distill.prepare import Drawing
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
    "a part missing": ({name: torch.ones(GOOD[name]) for name in ("latents", "pooled")}, "it has no prompt_embeds"),
    "an unknown part": (part("pooled_2", torch.ones(8)), "it holds pooled_2"),
    "negative text of another width": (part("negative_embeds", torch.ones(2, 9)), "negative_embeds has the width 9"),
    "negative pooled of another width": (part("negative_pooled", torch.ones(1)), "negative_pooled has the width 1"),
    "negative pooled alone": (
        {name: torch.ones(GOOD.get(name, (8,))) for name in ("latents", "prompt_embeds", "negative_pooled")},
        "negative_pooled has the width 8, expected pooled beside it",
    ),
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
        write_sample(tmp_path, 3, **tensors)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "tensor", "named"),
    [
        ("latents", torch.ones(1, 8, 12), "channels is 1, not 4"),
        ("prompt_embeds", torch.ones(3, 1), "text width is 1, not 8"),
        ("pooled", torch.ones(1), "pooled width is 1, not 8"),
        ("negative_embeds", torch.ones(2, 8), "text width is 8, and the other has no negative_embeds"),
        ("pooled", None, "it has no pooled"),
    ],
)
def test_a_width_that_differs_is_refused(data: Path, name: str, tensor: torch.Tensor | None, named: str):
    """A single channel or number would be broadcast; a part that only some have would be lost."""
    tensors = {key: each for key, each in (parts() | {name: tensor}).items() if each is not None}
    save_file(tensors, data / "0000007.safetensors")
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
    assert [(source.path.name, source.captions) for source in sources_of(pictures)] == [("b.png", ())]


def test_the_length_of_a_text_does_not_part_samples(data: Path):
    tensors = load_file(data / "0000000.safetensors")
    tensors["prompt_embeds"] = torch.ones(7, 8)
    save_file(tensors, data / "0000000.safetensors")
    shapes = SampleFolder(data).shapes
    assert shapes[0] == shapes[3] and len(set(shapes)) == 2
    assert [str(shape) for shape in shapes[:2]] == ["latents 4 x 12 x 8", "latents 4 x 8 x 12"]


def test_shorter_texts_are_padded_to_the_longest_of_a_pass_and_masked(tmp_path: Path):
    for index, length in enumerate((2, 5, 5)):
        write_sample(tmp_path, index, torch.ones(4, 8, 8), torch.full((length, 8), 3.0))
    samples = SampleFolder(tmp_path)
    batch = samples.batch([1, 0], [0, 1], 0, 0)
    assert batch.text_mask.tolist() == [[True] * 5, [True] * 2 + [False] * 3]
    assert batch.prompt_embeds.shape == (2, 5, 8) and torch.equal(batch.prompt_embeds[..., 0] == 3, batch.text_mask)
    assert not batch.prompt_embeds[~batch.text_mask].any()
    moved = batch.to(torch.device("meta"))
    assert moved.text_mask.is_meta and moved.prompt_embeds.is_meta
    assert samples.batch([1, 2], [0, 1], 0, 0).text_mask is None


def test_a_family_without_pooled_and_one_with_a_second_call(tmp_path: Path):
    for name, more in (("plain", {}), ("cfg", {"negative_embeds": torch.ones(2, 8), "negative_pooled": torch.ones(8)})):
        folder = tmp_path / name
        folder.mkdir()
        pooled = torch.ones(8) if more else None
        for index in range(2):
            write_sample(folder, index, torch.ones(4, 8, 8), torch.ones(3, 8), pooled, **more)
        batch = SampleFolder(folder).batch([0, 1], [0, 1], 0, 0)
        assert set(batch.text) == {"prompt_embeds", *(["pooled"] if more else []), *more}
        assert (batch.pooled is None) == (not more)
    with pytest.raises(ValueError, match="it has no pooled, and this model's pooled width is 8"):
        SampleFolder(tmp_path / "plain").check_fits({"latents": 4, "prompt_embeds": 8, "pooled": 8})


def test_odd_sides_are_refused_for_a_model_whose_tokens_are_2_x_2_cells(tmp_path: Path):
    write_sample(tmp_path, 0, torch.ones(4, 8, 8), torch.ones(3, 8))
    write_sample(tmp_path, 1, torch.ones(4, 7, 12), torch.ones(3, 8))
    widths = {"latents": 4, "prompt_embeds": 8}
    SampleFolder(tmp_path).check_fits(widths, even=False)  # As FLUX.2, whose token is one cell.
    with pytest.raises(ValueError, match=r"0000001.safetensors has latents of shape \(4, 7, 12\); expected even sides"):
        SampleFolder(tmp_path).check_fits(widths)


def test_a_model_without_a_mask_gets_texts_of_one_length(tmp_path: Path):
    """FLUX.1 would see the zeros that fill up a shorter text."""
    from clear_core.distill.config import TrainConfig
    from tests.support.distillation import start, teacher
    from tests.support.tiny_families import transformer

    for name, more in (("FLUX.1", {"pooled": torch.ones(8)}), ("Qwen-Image", {"negative_embeds": torch.ones(2, 24)})):
        folder = tmp_path / name
        folder.mkdir()
        for index, length in enumerate((2, 5, 2, 5)):
            width = 8 if name == "FLUX.1" else 24
            write_sample(folder, index, torch.ones(4, 8, 8), torch.ones(length, width), **more)
        model = teacher() if name == "FLUX.1" else transformer(name)
        training = start(model, folder, TrainConfig(radius=2, batch=2))
        shapes = training.order.buckets
        assert len(shapes) == (2 if name == "FLUX.1" else 1)
        assert [str(shape) for shape in shapes] == (
            [f"latents 4 x 8 x 8 with {length} text tokens" for length in (2, 5)]
            if name == "FLUX.1"
            else ["latents 4 x 8 x 8 with 2 negative tokens"]
        )


def test_samples_without_negative_text_name_the_guidance(tmp_path: Path):
    from tests.support.tiny_families import teaching_of, transformer

    write_sample(tmp_path, 0, torch.ones(4, 8, 8), torch.ones(3, 24))
    needs, config = teaching_of("Qwen-Image").needs, transformer("Qwen-Image").config
    SampleFolder(tmp_path).check_fits(needs(config, 1.0))
    with pytest.raises(ValueError, match="0000000.safetensors has no negative_embeds, and guidance by two calls needs"):
        SampleFolder(tmp_path).check_fits(needs(config, 4.0))
    with pytest.raises(ValueError, match="guidance is 0, and below 1 two calls would teach the flow without the text"):
        needs(config, 0.0)
    assert teaching_of("FLUX.1").needs(transformer("FLUX.1").config, 0.0), "a scale of the model's own input"


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
    [{"size": (32, 40)}, {"size": (0, 32)}, {"steps": 0}, {"guidance": math.nan}, {"steps": math.nan}, {"seed": -1}],
    ids=str,
)
def test_numbers_are_checked_before_the_first_picture(changed: dict[str, object]):
    with pytest.raises(ValueError, match=r"^(height|width|steps|guidance|seed) is .*; expected "):
        Drawing(**{"size": (32, 48), "steps": 4, "guidance": 2.5, "seed": 9, **changed})
