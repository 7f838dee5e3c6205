"""What locality does not take is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", minversion="0.41")

from clear_core import ClearSpec
from clear_core.distill.families import teaching_of
from clear_core.distill.samples import SampleFolder, write_sample
from clear_core.inspection.locality.__main__ import main, pictures_of
from clear_core.inspection.locality.attentions import Attentions
from clear_core.inspection.locality.measure import Subject
from clear_core.inspection.locality.settings import LocalitySettings
from tests.support.diffusers_flux import call_inputs, run, tiny_flux
from tests.support.diffusers_relatives import RELATIVES
from tests.support.distillation import samples_for, teacher
from tests.support.locality import SMALL, WIDTHS, subject


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"levels": (0.0,)}, "levels is 0.0; expected a number above 0 and up to 1"),
        ({"levels": ()}, r"levels is \(\); expected at least one number"),
        ({"parts": ("mass", "speed")}, "expected one or more of mass, distances, windows"),
        ({"radii": (8, 4)}, r"radii is \(8, 4\); expected rising numbers"),
        ({"limits": (0, 4)}, "limits is 0; expected a whole number of at least 1"),
        ({"count": 1, "share": 0.5}, "count is 1 and share 0.5; give one of the two"),
        ({"count": 4}, "count is 4; expected a whole number from 0 to 3"),
        ({"query": (4, 0)}, "y of the query is 4; expected a whole number from 0 to 3"),
        ({"spec": ClearSpec(9)}, "radius 9 covers the whole grid of 4 x 6 tokens"),
    ],
)
def test_what_does_not_fit_is_one_sentence(given: dict[str, Any], sentence: str, tmp_path: Path):
    with pytest.raises(ValueError, match=sentence) as raised:
        subject(tmp_path, LocalitySettings(**{"spec": ClearSpec(1), **given}))
    assert "\n" not in str(raised.value)


def test_pictures_of_two_sizes_and_models_without_rotary_distances_are_refused(tmp_path: Path):
    folder = samples_for(tmp_path, WIDTHS, 2, (4, 6))
    write_sample(folder, 2, torch.randn(4, 8, 6), torch.randn(5, 8), torch.randn(8))
    pictures = pictures_of(SampleFolder(folder), 0, torch.device("cpu"))
    with pytest.raises(ValueError, match="latents of 4 x 6 and 8 x 6; .* put samples of one size"):
        Subject(teacher(), pictures, SMALL)
    with pytest.raises(ValueError, match="no rotary distances to clip; leave out the part distances"):
        Subject(RELATIVES["SD3.5 Medium"].build(), pictures[:1], LocalitySettings(ClearSpec(1), count=1))


def test_a_batch_of_two_is_refused():
    model, inputs = tiny_flux(), call_inputs((5, 7), batch=2)
    with Attentions(model), pytest.raises(ValueError, match="a batch of 2; locality takes one picture at a time"):
        run(model, inputs)


CHECKED_FIRST = [
    (["--query", "99", "0"], "y of the query is 99"),
    (["--radius", "64"], "covers the whole grid of 8 x 6 tokens"),
    (["--dense-blocks", "9"], "count is 9; expected a whole number from 0 to 3"),
    (["--guidance", "nan"], "guidance is nan"),
    (["--levels", "0"], "levels is 0.0"),
    (["--samples", "3"], "latents of 8 x 6 and 16 x 12; expected one size: put samples of one size into a folder"),
]


def command(folder: Path, model: Any, widths: dict[str, int], *more: str) -> list[str]:
    """The command for a model and two samples of 8 x 6 tokens; later arguments win."""
    model.save_pretrained(folder / "model")
    samples_for(folder / "data", widths, 2, (16, 12))
    return [
        *("--model", str(folder / "model"), "--data", str(folder / "data"), "--out", str(folder / "out"), "--cpu"),
        *("--radius", "2", "--down-factor", "1", "--levels", "0.5", "--samples", "1", *more),
    ]


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if the weights are read."""

    def load(_options: Any) -> None:
        pytest.fail("the weights were read")

    monkeypatch.setattr("clear_core.distill.commands.load.load_transformer", load)


@pytest.mark.parametrize("more, sentence", CHECKED_FIRST)
@pytest.mark.usefixtures("unloaded")
def test_the_command_refuses_before_it_reads_weights(
    more: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = command(tmp_path, teacher(), WIDTHS, *more)
    write_sample(tmp_path / "data", 2, torch.randn(4, 8, 6), torch.randn(5, 8), torch.randn(8))
    assert main(given) == 1
    assert_one_line(capsys, sentence)


def assert_one_line(capsys: pytest.CaptureFixture[str], sentence: str) -> None:
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and "Error" not in said


@pytest.mark.usefixtures("unloaded")
def test_samples_of_another_model_and_distances_without_rotary_axes_are_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(command(tmp_path / "1", teacher(), {**WIDTHS, "prompt_embeds": 12})) == 1
    assert_one_line(capsys, "12")
    medium = RELATIVES["SD3.5 Medium"].build()
    widths = teaching_of(medium).needs(medium.config, 1.0)
    assert main(command(tmp_path / "2", medium, widths, "--parts", "distances", "--dense-blocks", "1")) == 1
    assert_one_line(capsys, "no rotary distances to clip; leave out the part distances")


@pytest.mark.usefixtures("unloaded")
def test_a_folder_of_other_settings_and_a_file_are_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    given = command(tmp_path, teacher(), WIDTHS)
    with pytest.raises(pytest.fail.Exception, match="the weights were read"):
        main(given)
    capsys.readouterr()
    assert main([*given, "--seed", "3"]) == 1
    assert_one_line(capsys, "holds results for seed 0, and now it is 3; go on as before, or choose another folder")
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        assert main([*given, "--out", str(tmp_path / place)]) == 1
        assert_one_line(capsys, f"{tmp_path / 'file'} is a file; expected a folder")


def test_too_few_samples_are_counted_and_a_full_card_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def full(_options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 24.00 GiB.\nMore lines.")

    monkeypatch.setattr("clear_core.distill.commands.load.load_transformer", full)
    assert main(command(tmp_path, teacher(), WIDTHS, "--samples", "99")) == 1
    said = capsys.readouterr()
    assert "holds 2 of the 99 samples" in said.out
    assert "memory" in said.err and "--cpu" in said.err and said.err.count("\n") == 1
