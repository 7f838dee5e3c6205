"""The laboratory of transfers: strips and conditions against their definitions, ControlNets, and the record."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from clear_core import ClearSpec, clear_attention
from clear_core.integrations.flux_denoiser import flux_arguments, flux_call
from clear_core.parallel import split_rows
from demo.experiments.measure import mean
from demo.experiments.subject import COMMITTED, Subject
from demo.experiments.transfer.command import RECORD
from demo.experiments.transfer.control import condition_of, condition_tokens, controlled_tokens, new_control
from demo.experiments.transfer.control_run import trained_control
from demo.experiments.transfer.plans import CONDITIONS, EXTENTS, TEXTS
from demo.experiments.transfer.record import make_record, total
from demo.experiments.transfer.strips import in_strips, strip_attention
from demo.experiments.transfer.table import tables
from demo.experiments.windows import WINDOWS
from demo.tiny_flux.caption import encode_captions
from demo.tiny_flux.weights import load_tiny_flux, model_fingerprint, save_tiny_flux

GRID, WORDS, SPEC = (7, 5), 3, ClearSpec(3)
QUICK = EXTENTS["quick"]


def sequence() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, WORDS + 35, 16, generator=generator) for _ in range(3)]


def test_exact_strips_are_the_whole_picture():
    q, k, v = sequence()
    whole = clear_attention(q, k, v, grid=GRID, spec=SPEC, backend="dense")
    for strips in (2, 3):
        torch.testing.assert_close(strip_attention(q, k, v, GRID, SPEC, strips, "exact"), whole, rtol=0, atol=2e-6)


def test_averaged_text_is_equation_7():
    """Text rows: the mean over strips of softmax over text and that strip; image rows: as they were."""
    q, k, v = sequence()
    found = strip_attention(q, k, v, GRID, SPEC, 3, "average")
    parts: list[Tensor] = []
    for rows in split_rows(GRID[0], 3):
        seen = [*range(WORDS), *range(WORDS + 5 * rows.start, WORDS + 5 * rows.stop)]
        scores = q[:, :, :WORDS].double() @ k[:, :, seen].double().transpose(2, 3) / 16**0.5
        parts.append(scores.softmax(-1) @ v[:, :, seen].double())
    torch.testing.assert_close(found[:, :, :WORDS].double(), torch.stack(parts).mean(0), rtol=0, atol=2e-6)
    whole = clear_attention(q, k, v, grid=GRID, spec=SPEC, backend="dense")
    assert isinstance(whole, Tensor)
    torch.testing.assert_close(found[:, :, WORDS:], whole[:, :, WORDS:], rtol=0, atol=2e-6)
    assert (found[:, :, :WORDS] - whole[:, :, :WORDS]).abs().max() > 1e-3, "Eq. 7 is an approximation"


def test_a_model_in_strips_gets_its_processors_back():
    model = load_tiny_flux()
    before = list(model.attn_processors.values())
    with in_strips(model, (4, 4), SPEC, 2, "exact"):
        assert not set(map(id, before)) & set(map(id, model.attn_processors.values()))
    assert list(map(id, before)) == list(map(id, model.attn_processors.values()))


def test_conditions_keep_what_they_say_and_no_more():
    picture = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    grey = condition_of("grey", picture)
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])
    torch.testing.assert_close(grey[0, 0], (0.299 * picture[0, 0] + 0.587 * picture[0, 1] + 0.114 * picture[0, 2]))
    shuffled = picture.unflatten(3, (3, 16)).flip(4).flatten(3)
    torch.testing.assert_close(condition_of("tile", picture), condition_of("tile", shuffled))
    assert (condition_of("tile", picture) - condition_of("tile", picture.flip(3))).abs().max() > 0.01


def call_of(model: Any) -> dict[str, Any]:
    latent = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(2))
    one = torch.ones(1)
    return flux_arguments(latent, one * 0.7, *encode_captions(["a big red plain ball left"]), one)


def test_a_new_control_adds_nothing_and_a_trained_one_leaves_the_model():
    model = load_tiny_flux()
    condition = condition_tokens("grey", torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3)))
    free = model(**call_of(model))[0]
    torch.testing.assert_close(controlled_tokens(model, new_control(model), condition, call_of(model)), free)
    net = trained_control("grey", replace(QUICK, control_steps=3), COMMITTED)
    assert (controlled_tokens(model, net, condition, call_of(model)) - free).abs().max() > 1e-4
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_flux_arguments_are_those_of_a_call():
    model = load_tiny_flux()
    latent = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(2))
    one = torch.ones(1)
    text = encode_captions(["a big red plain ball left"])
    assert torch.equal(model(**call_of(model))[0], flux_call(model, latent, one * 0.7, *text, one))


def test_a_record_is_made_once_and_its_table_shows_every_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows: list[None] = []
    made = make_record(tmp_path, QUICK, on_row=lambda: rows.append(None))
    assert len(rows) == total(QUICK) == sum(len(made[part]) for part in ("enlarged", "control", "strips"))
    assert made["model"] == model_fingerprint()
    shown = tables(made)
    assert sum(line.startswith("|") and "---" not in line for line in shown.splitlines()) == total(QUICK) + 3
    for file in tmp_path.rglob("*.safetensors"):
        file.touch()
    stamps = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    assert make_record(tmp_path, QUICK) == made
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")} == stamps, "made again"
    # Pictures of another extent, model or window are not taken for these.
    with pytest.raises(ValueError, match="steps 3, and now it is 4"):
        make_record(tmp_path, replace(QUICK, steps=4))
    others = COMMITTED.identity | {"windows": {"clear_local_4.safetensors": "0" * 64}}
    monkeypatch.setattr(Subject, "identity", property(lambda self: others))
    with pytest.raises(ValueError, match="holds results for windows"):
        make_record(tmp_path, QUICK)


def test_another_model_needs_windows_of_its_own(tmp_path: Path):
    other = tmp_path / "other.safetensors"
    save_tiny_flux(load_tiny_flux(), other, {"seed": "1"})
    with pytest.raises(ValueError, match="distilled from the committed model, not from"):
        Subject(other)
    with pytest.raises(ValueError, match=r"has no clear_local_\*"):
        Subject(other, tmp_path)
    with pytest.raises(ValueError, match="is no file"):
        Subject(tmp_path / "gone")
    assert Subject(other, shutil.copytree(WINDOWS, tmp_path / "windows")).identity["model"] != model_fingerprint()


def test_in_the_record_distilled_windows_are_nearer_wherever_a_picture_is_enlarged():
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert record["model"] == model_fingerprint()
    rows = {(row["side"], row["strength"], row["window"], row["weights"]): row for row in record["enlarged"]}
    full = EXTENTS["full"]
    assert len(rows) == len(full.factors) * len(full.strengths) * len(full.ways)
    for (side, strength, window, weights), row in rows.items():
        if weights == "distilled":
            own = rows[side, strength, window, "as they are"]
            assert mean(row["psnr"]) > mean(own["psnr"]) + 2, (side, strength, window)
            assert row["ssim"] > own["ssim"] and row["layout"] > own["layout"] and row["found"] >= own["found"]


def test_in_the_record_distilled_windows_take_a_controlnet_that_never_saw_them():
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    full = EXTENTS["full"]
    rows = {(row["condition"], row["window"], row["weights"]): row for row in record["control"]}
    assert len(rows) == len(CONDITIONS) * (1 + len(full.ways_under_control))
    for condition in CONDITIONS:
        (without,) = (row for key, row in rows.items() if key[0] == condition and "no ControlNet" in key[1])
        for (kind, window, weights), row in rows.items():
            if kind == condition and weights == "distilled":
                own = rows[condition, window, "as they are"]
                assert row["condition_error"] < min(without["condition_error"], own["condition_error"]), window
                assert mean(row["psnr"]) > mean(own["psnr"]) + 5 and row["found"] >= own["found"], window


def test_in_the_record_strips_are_the_whole_picture_only_with_exact_text():
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    cut = [row for row in record["strips"] if row["strips"] > 1]
    assert {(row["strips"], row["text"]) for row in cut} == {
        (n, text) for n in EXTENTS["full"].strips for text in TEXTS
    }
    for row in cut:
        assert (mean(row["psnr"]) > 60) == (row["text"] == "exact"), row
