"""The laboratory of positions: where its methods put tokens, and what its record says."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")

from clear_core.position_table import PositionTable
from clear_core.sdedit import Tile
from demo.experiments.hybrid_record import spread
from demo.experiments.positions import RECORD
from demo.experiments.positions_methods import METHODS, SETTINGS, TABLE_SIDE, TRAINED, Method
from demo.experiments.positions_run import PositionedDenoiser
from demo.experiments.positions_table import tables
from demo.tiny_flux.caption import encode_captions
from demo.tiny_sd3.model import velocity
from demo.tiny_sd3.weights import load_tiny_sd3

POSITIONS: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
WHOLE = {places: Method(places) for places in ("continued", "squeezed", "resampled", "trained span")}


@pytest.fixture(scope="module")
def model() -> Any:
    return load_tiny_sd3()


def test_own_positions_are_the_models(model: Any):
    noise = torch.randn(1, 16, 24, 20, generator=torch.Generator().manual_seed(0))
    before = model.pos_embed.cropped_pos_embed
    with torch.inference_mode():
        found = PositionedDenoiser(model, Method("own"), ["a red ball left"])(noise, 0.5)
        stock = velocity(model, noise, torch.tensor([0.5]), *encode_captions(["a red ball left"]))
    assert torch.equal(found, stock)
    assert model.pos_embed.cropped_pos_embed == before


def test_methods_agree_where_they_must(model: Any):
    table = PositionTable.read(model.pos_embed.pos_embed)
    whole = Tile(0, 0, 32, 32)
    own = Method("own").positions(table, (32, 32), whole)
    for places in ("continued", "squeezed", "resampled"):
        torch.testing.assert_close(WHOLE[places].positions(table, (32, 32), whole), own, rtol=0, atol=1e-6)
    frame = WHOLE["squeezed"].positions(table, (64, 64), Tile(0, 0, 64, 64)).unflatten(1, (64, 64))
    part = Method("squeezed", 512).positions(table, (64, 64), Tile(8, 30, 32, 32)).unflatten(1, (32, 32))
    assert torch.equal(part, frame[:, 8:40, 30:62])
    middle = WHOLE["trained span"].positions(table, (TRAINED, TRAINED), Tile(0, 0, TRAINED, TRAINED))
    crop = table.at(table.middle(TRAINED), table.middle(TRAINED))
    torch.testing.assert_close(middle, crop, rtol=0, atol=1e-6)


def test_the_record_has_every_method():
    for part, methods in zip(POSITIONS["flows"][1:], METHODS.values(), strict=True):
        assert [row["method"] for row in part["rows"]] == [method.name for method in methods]
    for part, (setting, methods) in zip(POSITIONS["settings"], SETTINGS.items(), strict=True):
        assert part["setting"] == setting.name
        assert [row["method"] for row in part["rows"]] == [method.name for method in methods]


def test_the_record_decides():
    """Why a longer picture is spread over what was trained, and why automatic tiles keep to the table."""
    for part in [one for one in POSITIONS["flows"] + POSITIONS["flows_before"] if one["side"] > TABLE_SIDE]:
        errors = {row["method"]: spread(row["by_scene"])[0] for row in part["rows"]}
        best = errors[WHOLE["trained span"].name]
        assert best < errors[WHOLE["squeezed"].name] and best < 0.8 * errors[WHOLE["continued"].name]
    for part, setting in zip(POSITIONS["settings"], SETTINGS, strict=True):
        if setting.side == TABLE_SIDE:
            continue
        quality = {row["method"]: spread(row["psnr"])[0] for row in part["rows"]}
        whole = {places: quality[method.name] for places, method in WHOLE.items()}
        assert max(whole, key=lambda places: whole[places]) == "trained span"
        if setting.strength < 1:
            # A few tenths of a dB are no clear win of the whole frame over the best tiles.
            tiles = max(value for name, value in quality.items() if name.startswith("tiles"))
            assert whole["trained span"] < tiles + 1.5


def test_a_short_run_gives_the_recorded_flow_errors(model: Any):
    from demo.experiments.positions_record import flow_errors
    from demo.experiments.positions_run import Folder
    from demo.tiny_flux.data import draw_latents
    from demo.tiny_flux.evaluate import seeded_noise

    folder = Folder.__new__(Folder)
    folder.model = model
    noise = seeded_noise(4, (TABLE_SIDE, TABLE_SIDE), 7)[:1]
    latents = draw_latents(folder.scenes[:1], (TABLE_SIDE, TABLE_SIDE))
    (part,) = (one for one in POSITIONS["flows"] if one["side"] == TABLE_SIDE)
    rows = {row["method"]: row["by_scene"][0] for row in part["rows"]}
    for method in (Method("own"), Method("trained span")):
        assert flow_errors(folder, method, latents, noise).mean().item() == pytest.approx(rows[method.name], rel=0.01)


def test_the_readme_shows_the_record():
    assert tables(POSITIONS) in RECORD.with_name("README.md").read_text(encoding="utf-8")
