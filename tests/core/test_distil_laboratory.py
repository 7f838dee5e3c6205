"""The laboratory of distillation: a run in small, and what its record says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("accelerate")

from demo.experiments.__main__ import main
from demo.experiments.distil import RECORD
from demo.experiments.distil_flux2 import cells, new_flux2, velocity
from demo.experiments.distil_models import samples_of
from demo.experiments.distil_plans import FULL, QUICK, SUBJECTS, Method, Subject
from demo.experiments.distil_run import Folder
from demo.experiments.distil_table import shares, short_rows, tables
from demo.tiny_flux.caption import encode_captions

DISTIL: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
PARTS = [pytest.param(part, id=part["subject"].replace(" ", "_")) for part in DISTIL["subjects"]]


def test_the_quick_run_makes_every_row_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("torchao")
    pytest.importorskip("bitsandbytes")
    path = tmp_path / "record.json"
    command = ["distillation", "--extent", "quick", "--out", str(tmp_path), "--record", str(path), "--threads", "1"]
    main(command)
    record = json.loads(path.read_text())
    assert tables(record) in capsys.readouterr().out
    assert keys(record) == keys(DISTIL)
    for part in record["subjects"][:2]:  # The small FLUX.2's blocks are still the identity.
        for row in part["rows"]:
            assert row["mean_before"] > 1e-4 and row["mean_after"] != row["mean_before"]
    made = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json") if file != path}
    main(command)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.json") if file != path} == made
    assert json.loads(path.read_text()) == record


def keys(record: dict[str, Any]) -> list[Any]:
    """What a record must have in common with another of the same plans."""
    rows = [(part["subject"], row["method"], row["radius"]) for part in record["subjects"] for row in part["rows"]]
    tried = [
        (part["subject"], trial["method"], *trial["means"]) for part in record["subjects"] for trial in part["trials"]
    ]
    return [*record, *rows, *tried]


def test_each_subject_gets_the_parts_of_its_family(tmp_path: Path):
    for subject in SUBJECTS:
        found, _ = samples_of(subject, tmp_path, QUICK).judged.load([0])
        parts = {name: tuple(tensor.shape[1:]) for name, tensor in found.items()}
        text = {"prompt_embeds": (24, 128)}
        pooled = {"pooled": (64,)}
        assert (
            parts
            == {
                "flux": {"latents": (16, 20, 20), **text, **pooled},
                "sd3": {
                    "latents": (16, 20, 20),
                    **text,
                    **pooled,
                    "negative_embeds": (24, 128),
                    "negative_pooled": (64,),
                },
                "flux2": {"latents": (64, 10, 10), **text},
            }[subject.key]
        )


def test_scenes_of_training_judging_and_choosing_are_different(tmp_path: Path):
    samples = samples_of(SUBJECTS[0], tmp_path, QUICK)
    latents = [part.load([0])[0]["latents"] for part in (samples.trained, samples.judged, samples.compared)]
    assert all((one - other).abs().max() > 0.5 for one, other in zip(latents, latents[1:] + latents[:1], strict=True))


def test_the_small_flux2_sees_each_token_as_a_cell_of_64_channels():
    """The training's latents and the samples' are the same picture: what is predicted fits what is noised."""
    latents = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(0))
    assert cells(latents).shape == (1, 64, 4, 6)
    assert torch.equal(cells(latents)[0, :4, 1, 2], latents[0, 0, 2:4, 4:6].flatten())
    model = new_flux2(0)
    flow = velocity(model, latents, torch.tensor([0.5]), *encode_captions([""]))
    assert flow.shape == latents.shape and flow.abs().max() == 0, "the blocks begin as nothing"


def test_a_rate_is_chosen_by_the_smallest_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    subject = Subject("flux", "", 160, (8,), 8, (Method(None, rates=(1.0, 2.0)), Method(16, rates=(3.0, 4.0))))
    folder = Folder(tmp_path, QUICK)
    errors = {1.0: 0.2, 2.0: 0.1, 3.0: 0.3, 4.0: 0.4}
    monkeypatch.setattr(folder, "row", lambda run: {"mean": errors[run.rate]})
    assert [folder.rate(subject, method) for method in (Method(None), Method(16), Method(16, "nf4"))] == [2.0, 3.0, 3.0]


def test_the_record_has_every_window_and_method_of_the_plans():
    assert (DISTIL["steps"], DISTIL["samples"], DISTIL["scenes"]) == (FULL.steps, FULL.samples, FULL.judged)
    for part, subject in zip(DISTIL["subjects"], SUBJECTS, strict=True):
        assert (part["subject"], part["side"], part["guidance"]) == (subject.title, subject.side, subject.guidance)
        assert [(row["radius"], row["method"]) for row in part["rows"]] == [
            (radius, method.name) for radius in subject.radii for method in subject.methods
        ]
        for trial in part["trials"]:
            best = min(trial["means"], key=trial["means"].get)
            assert float(best) == trial["taken"]
            for row in part["rows"]:
                if row["method"].startswith(trial["method"]):
                    assert row["rate"] == trial["taken"]


@pytest.mark.parametrize("part", PARTS)
def test_the_error_falls_at_every_radius_in_the_record(part: dict[str, Any]):
    for row in part["rows"]:
        assert row["mean_after"] < row["mean_before"] / 1.5, f"{row['method']}, radius {row['radius']}"


def test_rank_16_reaches_nine_tenths_of_the_gain_of_whole_weights_in_the_record():
    rows = DISTIL["subjects"][0]["rows"]
    found = {row["method"]: share for row, share in zip(rows, shares(rows), strict=True)}
    assert found["whole weights"] == 1
    for name in ("rank 16", "rank 16, base fp8", "rank 16, base nf4"):
        share = found[name]
        assert share is not None and share >= 0.9, name


def test_the_small_flux2_is_a_teacher_in_the_record():
    """Its flow depends on picture and caption: noise alone, or the mean picture, would leave far larger errors."""
    teacher = DISTIL["small_flux2"]
    assert max(teacher["flow_mse"].values()) < 0.5
    assert teacher["caption_match"] > 0.8


@pytest.mark.slow
def test_an_error_before_can_be_measured_again(tmp_path: Path):
    """Of the tiny SD3, whose calls are cheap, with all the record's scenes."""
    (subject,) = (each for each in SUBJECTS if each.key == "sd3")
    (part,) = (each for each in DISTIL["subjects"] if each["subject"] == subject.title)
    (row,) = (each for each in part["rows"] if each["radius"] == 4)
    found = Folder(tmp_path, replace(FULL, samples=1, compared=1)).before(subject, 4, "plain")
    assert found["mean"] == pytest.approx(row["mean_before"], rel=0.02)


def test_the_pages_show_the_record():
    readme = RECORD.with_name("README.md").read_text(encoding="utf-8")
    assert tables(DISTIL) in readme
    training = (RECORD.parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    assert "\n".join(short_rows(DISTIL)) in training
