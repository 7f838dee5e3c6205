"""The laboratory of locality: a run in small, and what its record says."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from clear_core.dense_blocks import dense_blocks_text, parse_dense_blocks
from clear_core.distill.families import Text, teaching_of
from clear_core.integrations.diffusers_model import attention_modules
from demo.experiments.__main__ import main
from demo.experiments.locality import RECORD
from demo.experiments.locality_run import pictures
from demo.experiments.locality_table import tables
from demo.tiny_flux.model import CONFIG, GUIDANCE
from demo.tiny_flux.weights import MODEL_FILE, load_tiny_flux
from tests.support.diffusers_flux import relative
from tests.support.diffusers_relatives import written_out_mask

LOCALITY: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
COUNTS = CONFIG["num_layers"], CONFIG["num_single_layers"]


def test_a_small_run_writes_record_picture_and_page_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    path, picture = tmp_path / "record.json", tmp_path / "picture.png"
    command = ["locality", "--sides", "128", "--out", str(tmp_path / "out"), "--record", str(path)]
    command += ["--picture", str(picture)]
    main(command)
    record = json.loads(path.read_text())
    assert tables(record) in capsys.readouterr().out
    assert picture.stat().st_size < 300_000 and (tmp_path / "out" / "128.html").exists()
    (part,) = record["sides"]
    assert part.keys() == LOCALITY["sides"][0].keys() and record.keys() == LOCALITY.keys()
    everywhere, proposed = masked_errors(part, monkeypatch)
    assert part["proposal"]["error_all_windows"] == pytest.approx(everywhere, rel=1e-3)
    assert part["proposal"]["error_with_dense_blocks"] == pytest.approx(proposed, rel=1e-3)
    # Nothing is measured twice.
    monkeypatch.setattr("clear_core.inspection.locality.measure.Subject.prediction", None)
    main(command)
    assert json.loads(path.read_text()) == record


@torch.no_grad()
def masked_errors(part: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The errors of a proposal by the stock model with masks: with windows everywhere, and but in its blocks."""
    model, (picture,) = load_tiny_flux(MODEL_FILE), pictures(part["side"])
    (level,) = part["levels"]
    picture.sigma.fill_(level)
    teaching, text = teaching_of(model), Text(picture.prompt_embeds, picture.pooled, picture.text_mask)
    scale = teaching.input_guidance(model.config, teaching.scale(GUIDANCE))
    height, width = (side // 2 for side in picture.latents.shape[2:])
    mask = written_out_mask((height, width), picture.prompt_embeds.shape[1], 0, part["radius"])
    blocks = [block for block, _ in attention_modules(model)]
    sdpa = torch.nn.functional.scaled_dot_product_attention

    def flow(windowed: Collection[object]) -> torch.Tensor:
        order = iter(blocks)

        def attention(*qkv: torch.Tensor, **others: Any) -> torch.Tensor:
            if next(order) in windowed:
                others["attn_mask"] = mask
            return sdpa(*qkv, **others)

        with monkeypatch.context() as patched:
            patched.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
            found = teaching.call(model, picture.noisy, picture.sigma, text, scale)
        assert next(order, None) is None, "each block attended once"
        return found

    stock, dense = flow(set()), parse_dense_blocks(part["proposal"]["dense_blocks"], *COUNTS)
    return [relative(flow(set(blocks) - kept), stock) ** 2 for kept in (set(), set(dense))]


@pytest.mark.parametrize("part", LOCALITY["sides"], ids=lambda part: f"{part['side']}_px")
def test_the_record_is_in_itself_right(part: dict[str, Any]):
    names = [dense_blocks_text([("double", index)]) for index in range(COUNTS[0])]
    names += [dense_blocks_text([("single", index)]) for index in range(COUNTS[1])]
    assert list(part["within"]) == list(part["windows"]) == list(part["one_dense"]) == names
    for shares in part["within"].values():
        assert shares == sorted(shares) and shares[-1] == pytest.approx(1, abs=1e-4)
    # The proposal is the costliest block.
    (proposed,) = parse_dense_blocks(part["proposal"]["dense_blocks"], *COUNTS)
    name = dense_blocks_text([proposed])
    assert part["windows"][name] == max(part["windows"].values())
    assert part["one_dense"][name] == pytest.approx(part["proposal"]["error_with_dense_blocks"], rel=1e-3)


def test_a_side_without_a_window_of_an_eighth_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="sides has 200; expected a multiple of 128 px"):
        main(["locality", "--sides", "200", "--out", str(tmp_path)])
