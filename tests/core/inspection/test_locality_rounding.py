"""The error of rounding: what it is, and that nothing below it is proposed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", minversion="0.41")

from clear_core import ClearSpec
from clear_core.inspection.locality.attentions import Attentions, BlockTokens
from clear_core.inspection.locality.measure import Subject
from clear_core.inspection.locality.page import html_page
from clear_core.inspection.locality.run import Run
from clear_core.inspection.locality.settings import LocalitySettings
from clear_core.inspection.locality.summary import block_costs, proposal_sentence, rounding_floor
from clear_core.inspection.units import percent
from tests.support.locality import subject


def test_rounding_is_the_error_of_attention_in_float32(tmp_path: Path):
    half = subject(tmp_path / "half")
    half.dtype = torch.bfloat16
    record = Run(half).record()
    with Attentions(half.transformer) as attentions:
        stock = half.prediction(attentions, 0, 0.8, BlockTokens.dense)

        def in_float64(tokens: BlockTokens) -> torch.Tensor:
            scores = tokens.q.double() @ tokens.k.double().mT * tokens.scale
            return scores.softmax(-1) @ tokens.v.double()

        other = half.prediction(attentions, 0, 0.8, in_float64)
    floors = {row["level"]: row["values"] for row in record["floor"]}
    expected = ((other - stock).square().sum() / stock.square().sum()).item()
    assert list(floors) == [0.3, 0.8] and expected > 1e-7
    assert floors[0.8] == pytest.approx(expected, rel=0.2)
    assert rounding_floor(record) == pytest.approx(sum(floors.values()) / 2)
    page = html_page(record, {})
    assert page.count(f"Errors below {percent(rounding_floor(record))} are rounding.") == 1
    assert rounding_floor(Run(subject(tmp_path / "float")).record()) < 1e-11


def test_a_proposal_names_no_block_whose_cost_is_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Errors are planted: of three blocks one costs more than rounding."""
    costs = {"d0": 2e-5, "s0": 3e-3, "s1": 4e-5}
    monkeypatch.setattr(Subject, "windows", lambda *_: costs)
    monkeypatch.setattr(Subject, "floor", lambda *_: 4e-5)
    one = LocalitySettings(ClearSpec(2), parts=("windows",), levels=(0.5,))
    for name, settings in {
        "three": replace(one, count=3),
        "all": replace(one, share=1.0),
        "half": replace(one, share=0.5),
    }.items():
        record = Run(subject(tmp_path / name, settings)).record()
        assert record["proposal"]["dense_blocks"] == "s0"
        found, _ = block_costs(record)
        assert found == pytest.approx({("double", 0): 0.0, ("single", 0): 2.96e-3, ("single", 1): 0.0})
    monkeypatch.setattr(Subject, "floor", lambda *_: 1e-2)
    record = Run(subject(tmp_path / "none", one)).record()
    assert record["proposal"]["dense_blocks"] == "" and "No block" in proposal_sentence(record)
