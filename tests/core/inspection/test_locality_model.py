"""Locality of whole models: every family gives its tokens, is as before afterwards, and a planted block is found."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", minversion="0.41")

from clear_core import ClearSpec
from clear_core.distill.families import teaching_of
from clear_core.distill.samples import SampleFolder
from clear_core.inspection.locality.__main__ import main, pictures_of, windows_of
from clear_core.inspection.locality.attentions import Attentions, BlockTokens
from clear_core.inspection.locality.distances import Clip, clipped_attention
from clear_core.inspection.locality.figures import draw_all
from clear_core.inspection.locality.measure import Subject
from clear_core.inspection.locality.page import draw_sheet, html_page
from clear_core.inspection.locality.run import Run
from clear_core.inspection.locality.settings import PARTS, LocalitySettings
from clear_core.inspection.locality.summary import (
    block_costs,
    distance_errors,
    head_quantiles,
    local_shares,
    proposal_sentence,
    rounding_floor,
)
from clear_core.integrations.diffusers import apply_clear
from clear_core.rope import NOT_STRETCHED, cos_sin
from tests.support.diffusers_flux import call_inputs, relative, run, tiny_flux
from tests.support.diffusers_relatives import RELATIVES
from tests.support.distillation import samples_for, teacher
from tests.support.locality import SMALL, WIDTHS, subject

GRID = (5, 7)


def model_and_call(name: str) -> tuple[Any, dict[str, Any]]:
    if name == "FLUX.1":
        return tiny_flux(), call_inputs(GRID)
    return RELATIVES[name].build(), RELATIVES[name].call(GRID, batch=1)


@pytest.mark.parametrize("name", ["FLUX.1", *RELATIVES])
def test_every_family_gives_its_tokens_and_is_as_before_afterwards(name: str):
    model, inputs = model_and_call(name)
    before, processors = run(model, inputs), dict(model.attn_processors)
    seen: list[str] = []

    def watched(tokens: BlockTokens) -> torch.Tensor:
        seen.append(tokens.attention.name)
        assert tokens.layout.grid == GRID and tokens.layout.length == tokens.q.shape[2]
        return tokens.dense()

    with apply_clear(model, ClearSpec(2), ntk_factor=1.0, proportional_attention="off"):
        windowed = run(model, inputs)
    with Attentions(model) as attentions:
        assert relative(run(model, inputs), before) < 1e-5
        with attentions.by(watched):
            assert relative(run(model, inputs), before) < 1e-5
        assert seen == [attention.name for attention in attentions.ids]
        assert len(set(seen)) == len(seen) == len(processors)
        with attentions.by(lambda tokens: tokens.windowed(ClearSpec(2))):
            assert relative(run(model, inputs), windowed) < 1e-5
    assert relative(windowed, before) > 1e-3
    assert torch.equal(run(model, inputs), before)
    assert all(processor is processors[key] for key, processor in model.attn_processors.items())
    for module in model.modules():
        assert not module._forward_pre_hooks and not module._forward_pre_hooks_with_kwargs


def test_the_model_is_as_before_after_an_error():
    model, inputs = model_and_call("FLUX.1")
    before = run(model, inputs)

    def fails(_tokens: BlockTokens) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Attentions(model) as attentions, attentions.by(fails):
        run(model, inputs)
    assert torch.equal(run(model, inputs), before)
    with Attentions(model) as attentions:
        with pytest.raises(KeyboardInterrupt), attentions.by(fails):
            run(model, inputs)
        assert relative(run(model, inputs), before) < 1e-5, "attention is dense again"


@pytest.mark.parametrize("name", ["FLUX.1", "FLUX.2", "Qwen-Image", "Chroma"])
def test_a_clip_past_the_grid_is_the_stock_model_and_a_small_one_is_not(name: str):
    model, inputs = model_and_call(name)
    stock = run(model, inputs)
    embedder = model.pos_embed
    frequencies = NOT_STRETCHED.frequencies(embedder.theta, embedder.axes_dim)
    with Attentions(model) as attentions:
        for clip, same in ((Clip("far", 6), True), (Clip("near", 0), True), (Clip("far", 1), False)):

            def clipped(tokens: BlockTokens, clip: Clip = clip) -> torch.Tensor:
                return clipped_attention(tokens.q, tokens.k, tokens.v, tokens.layout, tokens.scale, clip, frequencies)

            with attentions.by(clipped):
                found = relative(run(model, inputs), stock)
            assert found < 1e-5 if same else found > 1e-4


def test_the_frequencies_are_the_models_own(tmp_path: Path):
    found = subject(tmp_path)
    ids = torch.tensor([[0.0, 3.0, 11.0], [1.0, 7.0, 2.0]])
    cos, sin = cos_sin(ids, found.frequencies)
    own_cos, own_sin = found.transformer.pos_embed(ids)
    assert torch.allclose(cos.repeat_interleave(2, -1), own_cos, atol=1e-6)
    assert torch.allclose(sin.repeat_interleave(2, -1), own_sin, atol=1e-6)


@pytest.mark.parametrize("planted", ["d0", "s0", "s1"])
def test_the_only_block_that_needs_the_whole_picture_is_proposed(planted: str, tmp_path: Path):
    """In the other blocks nothing of the attention reaches the picture, so that windows cost nothing there."""
    model = teacher()
    width = model.inner_dim
    with torch.no_grad():
        for index, block in enumerate(model.transformer_blocks):
            if f"d{index}" != planted:
                for layer in (block.attn.to_out[0], block.attn.to_add_out):
                    layer.weight.zero_()
        for index, block in enumerate(model.single_transformer_blocks):
            if f"s{index}" != planted:
                block.proj_out.weight[:, :width].zero_()
    for count, share in ((1, None), (None, 0.9)):
        settings = LocalitySettings(ClearSpec(2), parts=("windows",), levels=(0.5,), count=count, share=share)
        record = Run(subject(tmp_path / str(count), settings, model)).record()
        proposal = record["proposal"]
        assert proposal["dense_blocks"] == planted and proposal["by"] == "windows"
        assert proposal["error_all_windows"] > 1e-6 and proposal["error_with_dense_blocks"] < 1e-9
        assert f'dense_blocks to "{planted}"' in proposal_sentence(record)


def test_mass_alone_proposes_the_block_that_looks_farthest():
    """A record written by hand: of two heads, block s1's leave most to the outside of radius 2."""
    rows = {
        "d0": {"within": [[0.2, 0.7], [0.4, 0.8]], "text": [0.2, 0.2], "reference": [0.0, 0.0]},
        "s0": {"within": [[0.5, 0.9], [0.5, 0.9]], "text": [0.0, 0.1], "reference": [0.0, 0.0]},
        "s1": {"within": [[0.1, 0.4], [0.1, 0.2]], "text": [0.2, 0.0], "reference": [0.2, 0.0]},
    }
    record = {
        "double": 1,
        "single": 2,
        "settings": {"spec": {"radius": 3, "down_factor": 1, "overview": False}, "radii": [1, 2], "levels": [0.5]},
        "mass": [{"picture": 0, "level": 0.5, "values": rows}],
    }
    assert local_shares(record)["d0"].flatten().tolist() == pytest.approx([0.25, 0.875, 0.5, 1.0])
    costs, by = block_costs(record)
    assert by == "mass"
    assert costs == pytest.approx({("double", 0): 0.0625, ("single", 0): 0.05, ("single", 1): 17 / 30})
    # The middle of six heads: 0.2, 2/3, 0.875, 0.9, 1, 1.
    assert head_quantiles(record)[1, 1].item() == pytest.approx((0.875 + 0.9) / 2)


def test_close_noise_levels_are_kept_apart(tmp_path: Path):
    settings = LocalitySettings(ClearSpec(1), parts=("mass",), levels=(0.5, 0.50000001), count=1)
    Run(subject(tmp_path / "data", settings), tmp_path / "out").record()
    assert len(list((tmp_path / "out").glob("mass_0_*.json"))) == 2


def test_a_run_goes_on_where_it_stopped(tmp_path: Path):
    whole = Run(subject(tmp_path / "data")).record()
    calls: list[int] = []

    def stops(count: int) -> None:
        calls.append(count)
        if len(calls) == 9:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        Run(subject(tmp_path / "data"), out, on_calls=stops).record()
    made: list[int] = []
    again = Run(subject(tmp_path / "data"), out, on_calls=made.append)
    assert again.record() == whole and sum(made) == again.total
    third = Run(subject(tmp_path / "data"), out, on_calls=made.append)
    third.subject.prediction = None  # type: ignore[assignment] - nothing is called any more
    assert third.record() == whole
    assert {name: maps.shape for name, maps in third.maps.items()} == dict.fromkeys(("d0", "s0", "s1"), (2, 4, 6))
    with pytest.raises(ValueError, match=re.escape("holds results for seed 0, and now it is 1")):
        Run(subject(tmp_path / "data", LocalitySettings(**{**vars(SMALL), "seed": 1})), out)


def test_the_record_is_in_itself_right(tmp_path: Path):
    record = Run(subject(tmp_path)).record()
    for name, shares in local_shares(record).items():
        assert shares.shape == (2, 3), name
        assert (shares[:, -1] - 1).abs().max() < 1e-5, "the last circle covers the grid"
        assert (shares.diff(dim=1) > 0).all()
    assert len(record["mass"]) == len(record["distances"]) == len(record["windows"]) == 2
    assert all(error > 0 for side in ("far", "near") for error in distance_errors(record, side))


@pytest.mark.parametrize("name", [name for name in RELATIVES if name != "SD3"])
def test_every_family_is_measured(name: str, tmp_path: Path):
    model = RELATIVES[name].build()
    taught = teaching_of(model)
    grid = (8, 12) if taught.family.token_cells == 2 else (4, 6)
    samples = SampleFolder(samples_for(tmp_path, taught.needs(model.config, 1.0), 1, grid))
    parts = ("mass", "windows") if taught.family.diffusers.embedder is None else PARTS
    settings = LocalitySettings(ClearSpec(1), parts, levels=(0.5,), radii=(2, 9), limits=(1,), queries=0, count=1)
    measured = Subject(model, pictures_of(samples, 0, torch.device("cpu")), settings)
    record = Run(measured).record()
    assert record["grid"] == [4, 6] and len(record["mass"][0]["values"]) == RELATIVES[name].attentions
    assert len(record["windows"][0]["values"]) == record["double"] + record["single"]
    expected: dict[str, torch.Tensor] = {}
    places = torch.cartesian_prod(torch.arange(4.0), torch.arange(6.0))
    inside = torch.cdist(places, places) < 2

    def weighed(tokens: BlockTokens) -> torch.Tensor:
        image = tokens.layout.image_slice
        weights = (tokens.q.double() @ tokens.k.double().mT * tokens.scale).softmax(-1)[0, :, image, image]
        expected[tokens.attention.name] = (weights * inside).sum((1, 2)) / weights.sum((1, 2))
        return tokens.dense()

    with Attentions(model) as attentions:
        measured.prediction(attentions, 0, 0.5, weighed)
    for attention, shares in local_shares(record).items():
        assert torch.allclose(shares[:, 0], expected[attention], atol=1e-4) and (shares[:, 0] < 0.9).all()
        assert torch.allclose(shares[:, 1], torch.ones(len(shares), dtype=torch.float64), atol=1e-4)
    assert record["proposal"]["dense_blocks"]
    assert record["proposal"]["error_all_windows"] > max(1e-8, 1e3 * rounding_floor(record))


def test_the_page_and_the_sheet_show_every_part_without_an_address(tmp_path: Path):
    measured = Run(subject(tmp_path), about={"model": "<tiny>", "versions": {"torch": "2"}})
    record = measured.record()
    page = html_page(record, measured.maps)
    assert page.count("<img") == 4 and page.count("<table>") == 3
    assert set(re.findall(r'(?:src|href)="([^,"]*)', page)) == {"data:image/png;base64"}
    text = re.sub(r'src="data:[^"]*"', "", page)
    assert not re.search(r"https?:|//|url\(|@import|<script|<link", text)
    assert "&lt;tiny&gt;" in page and "<tiny>" not in page
    assert draw_sheet(record, measured.maps).size[0] == 1640
    only = {name: value for name, value in record.items() if name not in ("mass", "distances")}
    assert [title for title, _, _ in draw_all(only, {}, 800)] == ["Cost of windows (radius 1) in one block alone"]


def test_the_command_writes_record_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    teacher().save_pretrained(tmp_path / "model")
    samples_for(tmp_path / "data", WIDTHS, 2, (16, 12))
    out = tmp_path / "out"
    command = [
        *("--model", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--out", str(out), "--cpu"),
        *("--radius", "2", "--down-factor", "1", "--levels", "0.5", "--samples", "1"),
    ]
    assert main(command) == 0
    record = json.loads((out / "locality.json").read_text())
    assert record["model"] == "model" and len(record["model_content"]) == 32 and record["device"] == "cpu"
    assert record["samples"] == 1 and record["dtype"] == "bfloat16" and str(tmp_path) not in json.dumps(record)
    assert record["settings"]["spec"] == {"radius": 2, "down_factor": 1, "overview": False}
    assert f'dense_blocks to "{record["proposal"]["dense_blocks"]}"' in capsys.readouterr().out
    assert "<h1>Where model looks</h1>" in (out / "locality.html").read_text("utf-8")
    assert main([*command, "--seed", "3"]) == 1
    assert "choose another folder" in capsys.readouterr().err


def test_windows_are_those_of_the_node_without_weights():
    assert windows_of(0, 0, (64, 64)) == ClearSpec(16, 4, overview=True)
    assert windows_of(0, 0, (256, 256)) == ClearSpec(32, 4, overview=True)
    assert windows_of(8, 1, (256, 256)) == ClearSpec(8)


def test_the_package_of_the_nodes_needs_no_diffusers():
    """``clear_core.inspection`` is imported in ComfyUI; locality itself imports diffusers only when it runs."""
    before = dict(sys.modules)
    for name in before:
        if name.partition(".")[0] in ("clear_core", "diffusers"):
            del sys.modules[name]
    sys.modules["diffusers"] = None  # type: ignore[assignment] - an import of it fails now
    try:
        for name in ("page", "locality", "locality.run", "locality.page", "locality.__main__"):
            importlib.import_module(f"clear_core.inspection.{name}")
        with pytest.raises(ImportError, match="diffusers"):
            importlib.import_module("diffusers")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("clear_core", "diffusers")]:
            del sys.modules[name]
        sys.modules.update(before)
