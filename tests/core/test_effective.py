"""What settings come to: each decision by a rule written out here, and its costs by counting pairs of a real mask."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout
from clear_core.attention.backends.dense import image_rows_mask
from clear_core.effective import Effective, Inactive
from clear_core.families import CHROMA, FLUX1, Family, ModelShape
from clear_core.settings import ClearSettings

FLUX = ModelShape.usual(FLUX1)
TINY = ModelShape(FLUX1, 2, 3, 64, 16)
MEGAPIXEL = SequenceLayout(512, (64, 64))
TWO_MEGAPIXELS = SequenceLayout(512, (64, 128))
LARGE = SequenceLayout(512, (256, 256))


def of(layout: SequenceLayout = LARGE, shape: ModelShape = FLUX, **settings: object) -> Effective:
    return Effective.of(ClearSettings(ClearSpec(8), **settings), shape, layout)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("effective", "reason"),
    [
        pytest.param(of(), None, id="windows"),
        pytest.param(Effective.of(None, FLUX, LARGE), Inactive.NOT_CONNECTED, id="not connected"),
        pytest.param(of(MEGAPIXEL, min_tokens=4097), Inactive.MIN_TOKENS, id="one token too few"),
        pytest.param(of(MEGAPIXEL, min_tokens=4096), None, id="just enough tokens"),
        pytest.param(of(dense_blocks="0-56"), Inactive.DENSE_BLOCKS, id="all blocks dense"),
        pytest.param(of(dense_blocks="d0-18, s0-37"), Inactive.DENSE_BLOCKS, id="all blocks dense, by kind"),
        pytest.param(of(dense_blocks="1-56"), None, id="one block has windows"),
        pytest.param(of(SequenceLayout(5, (6, 6))), Inactive.COVERED, id="covered"),
        pytest.param(of(SequenceLayout(5, (1, 8))), Inactive.COVERED, id="just covered"),
        pytest.param(of(SequenceLayout(5, (1, 9))), None, id="just not covered"),
        pytest.param(
            Effective.of(ClearSettings(ClearSpec(8, 2)), FLUX, SequenceLayout(5, (6, 6))), None, id="covered, pooled"
        ),
    ],
)
def test_why_there_are_no_windows(effective: Effective, reason: Inactive | None) -> None:
    assert effective.inactive is reason
    assert effective.active == (reason is None)
    assert (effective.windowed_blocks == 0) == (reason is not None)
    assert (effective.window_share < 1) == (effective.attention_share < 1) == (effective.windowed_blocks > 0) or (
        effective.spec.pools
    )


def test_a_tile_is_judged_by_its_frame_and_covered_by_its_own_windows() -> None:
    tile = SequenceLayout(512, (6, 6))
    settings = ClearSettings(ClearSpec(8), min_tokens=5000)
    alone, part = Effective.of(settings, FLUX, tile), Effective.of(settings, FLUX, tile, (256, 256))
    assert (alone.inactive, part.inactive) == (Inactive.MIN_TOKENS, Inactive.COVERED)
    assert (alone.stretch.factor, part.stretch.factor) == (1.0, 10.0)
    assert part.scale == Effective.of(settings, FLUX, LARGE).scale != alone.scale


@pytest.mark.parametrize("layout, hires", [(TWO_MEGAPIXELS, False), (SequenceLayout(512, (1, 8193)), True)], ids=str)
@pytest.mark.parametrize("family", [FLUX1, CHROMA], ids=lambda family: family.name)
def test_auto_goes_by_the_size(layout: SequenceLayout, hires: bool, family: Family) -> None:
    auto = of(layout, ModelShape.usual(family))
    assert (auto.stretch.factor, auto.proportional, auto.controlnet) == (
        (10.0, True, True) if hires else (1.0, False, False)
    )
    base = math.log(layout.text + layout.image, 4608) if hires else 1.0
    assert auto.scale == pytest.approx(math.sqrt(base / 128))


def test_set_values_override_auto() -> None:
    on = of(MEGAPIXEL, ntk_factor=3.0, proportional_attention="on", controlnet="on")
    off = of(ntk_factor=1.0, proportional_attention="off", controlnet="off")
    assert (on.stretch.factor, on.proportional, on.controlnet) == (3.0, True, True)
    assert (off.stretch.factor, off.proportional, off.controlnet) == (1.0, False, False)
    assert off.scale == 128**-0.5


def test_the_recipe_is_the_family_s() -> None:
    other = replace(FLUX1, hires_tokens=100, hires_ntk=1.0, scale_base=200)
    effective = of(SequenceLayout(16, (12, 12)), replace(FLUX, family=other))
    assert (effective.stretch.factor, effective.proportional) == (1.0, True)
    assert effective.scale == pytest.approx(math.sqrt(math.log(160, 200) / 128))


@pytest.mark.parametrize("head_dim", [40, 64, 80, 96, 120, 128])
def test_queries_are_not_multiplied_for_the_plain_scale(head_dim: int) -> None:
    """A factor that differs from 1 by rounding would cost a copy of all queries in every block."""
    plain = of(MEGAPIXEL, proportional_attention="off")
    assert plain.query_factor_for(head_dim) == 1.0
    grown = of(proportional_attention="on")
    assert grown.query_factor_for(head_dim) > 1.05
    assert grown.query_factor_for(head_dim) * head_dim**-0.5 == pytest.approx(grown.scale_for(head_dim))


def test_reference_tokens_do_not_count_for_the_scale() -> None:
    with_references = of(SequenceLayout(5, (60, 70), 40), proportional_attention="on")
    assert with_references.scale == of(SequenceLayout(5, (60, 70)), proportional_attention="on").scale


def test_pooled_keys_count_tenfold() -> None:
    settings = ClearSettings(ClearSpec(8, 4), proportional_attention="on")
    scale = Effective.of(settings, FLUX, MEGAPIXEL).scale
    assert 4608 ** (scale**2 * 128) == pytest.approx(10 * 4608)


def test_without_clear_nothing_is_changed() -> None:
    effective = Effective.of(None, FLUX, LARGE)
    assert (effective.stretch.factor, effective.scale, effective.controlnet) == (1.0, 128**-0.5, False)
    assert effective.pairs == 57 * LARGE.length**2


def test_blocks_that_a_model_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="2 double and 3 single"):
        of(shape=TINY, dense_blocks="5")
    with pytest.raises(ValueError, match="dense_blocks"):
        of(shape=TINY, dense_blocks="x")


def test_costs_are_the_pairs_of_each_block_s_mask() -> None:
    """200 random cases: pairs counted in the oracle's masks, one block after the other."""
    rng = random.Random(13)
    for _ in range(200):
        layout = SequenceLayout(rng.randrange(9), (rng.randint(1, 9), rng.randint(1, 9)), rng.choice((0, 0, 5)))
        spec = ClearSpec(rng.randint(1, 12), rng.choice((1, 1, 2, 3)))
        dense = rng.sample(range(5), rng.choice((0, 0, 1, 4, 5)))
        settings = ClearSettings(
            spec, dense_blocks=", ".join(map(str, dense)), min_tokens=rng.choice((0, 0, layout.image, layout.image + 1))
        )
        effective = Effective.of(settings, TINY, layout)
        names = [*(("double", i) for i in range(2)), *(("single", i) for i in range(3))]
        windows = layout.image >= settings.min_tokens
        seen = image_rows_mask(range(layout.grid[0]), layout, spec, torch.device("cpu"))
        window = int(seen.sum()) + (layout.text + layout.reference) * layout.length
        full = layout.length**2
        expected = [window if windows and index not in dense else full for index in range(5)]
        assert effective.pairs == sum(expected)
        assert effective.attention_share == pytest.approx(sum(expected) / (5 * full))
        is_windowed = [effective.is_windowed(name) for name in names]
        if effective.active:
            assert is_windowed == [index not in dense for index in range(5)]
            assert effective.window_share == pytest.approx(window / full)
        else:
            assert not any(is_windowed) and expected == [full] * 5


@pytest.mark.parametrize(
    ("grid", "radius"), [((64, 64), 16), ((128, 128), 16), ((96, 170), 16), ((129, 128), 32), ((256, 256), 32)], ids=str
)
def test_a_radius_that_nobody_named_grows_with_the_call(grid, radius):
    """Of a tile by the tile's size: the model is called for that."""
    frame = (512, 512)
    for widgets, expected in (((0, 0), radius), ((7, 0), 7), ((0, 1), radius)):
        settings = ClearSettings.of_widgets(*widgets, None)
        found = Effective.of(settings, FLUX, SequenceLayout(512, grid), frame).spec
        assert found.radius == expected and found.overview == (widgets[1] != 1)
        assert found == Effective.of(settings, FLUX, SequenceLayout(512, grid)).spec
