"""Units of a frame: sizes, tiles and paddings of models that are made otherwise than FLUX.1."""

from __future__ import annotations

import pytest
import torch

from clear_core.call_memory import CallMemory, MemoryPlan
from clear_core.families import CHROMA, FLUX1
from clear_core.frame_units import FrameUnits
from clear_core.memory import GIB, Activations
from clear_core.picture_kinds import PICTURE_KINDS
from clear_core.sdedit import Stage, TileLayout, choose_tiles, plan_stages

KINDS = list(PICTURE_KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_entries_agree_with_themselves(name: str) -> None:
    kind = PICTURE_KINDS[name]
    units = kind.units
    assert units.pixels == units.latent_pixels * units.token_cells * units.unit_tokens
    assert units.pixels == units.token_pixels * units.unit_tokens and units.cells * units.latent_pixels == units.pixels
    assert kind.name and units.pixels in (16, 32, 64)


def test_flux_s_are_the_families() -> None:
    assert PICTURE_KINDS["flux"].units == FLUX1.units == FrameUnits(8, 2)
    assert PICTURE_KINDS["chroma"].units == CHROMA.units


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("height", "width"), [(37, 61), (64, 64), (1000, 1), (129, 200)], ids=str)
def test_a_stage_is_padded_to_whole_units_and_no_further(name: str, height: int, width: int) -> None:
    units = PICTURE_KINDS[name].units
    (stage,) = plan_stages(height, width, upscale_by=1.0, units=units)
    for side, padded, count in zip((height, width), stage.padded, stage.grid, strict=True):
        assert padded == count * units.pixels and 0 <= padded - side < units.pixels
    shape = units.latent_shape(stage.grid, 4, 2)
    assert shape[:2] == (2, 4) and shape[2:-2] == ((1,) if units.has_frames else ())
    assert tuple(side * units.latent_pixels for side in shape[-2:]) == stage.padded
    assert stage.tokens * units.token_pixels**2 == stage.padded[0] * stage.padded[1]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(("tile", "overlap"), [((192, 256), 64), ((320, 130), 33), ((128, 128), 0)], ids=str)
def test_tiles_cover_every_cell_of_a_latent_once(name: str, tile: tuple[int, int], overlap: int) -> None:
    units = PICTURE_KINDS[name].units
    grid = units.grid(900, 1300)
    layout = TileLayout.of_pixels(grid, *tile, overlap, units)
    total = torch.zeros(units.latent_shape(grid, 1)[-2:])
    for each in layout.tiles:
        rows, columns = each.latents
        weight = layout.weight(each)[0, 0]
        assert (
            total[rows, columns].shape == weight.shape and rows.start % units.cells == columns.start % units.cells == 0
        )
        total[rows, columns] += weight
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)
    assert layout.overlap * units.pixels >= overlap > (layout.overlap - 1) * units.pixels


@pytest.mark.parametrize("name", ["sdxl", "flux2", "hunyuan_image", "chroma_radiance"])
def test_messages_speak_of_the_models_pixels(name: str) -> None:
    units = PICTURE_KINDS[name].units
    grid = units.grid(1024, 1024)
    with pytest.raises(ValueError, match=rf"tile_height is {units.pixels}; expected at least {2 * units.pixels} px"):
        TileLayout.of_pixels(grid, units.pixels, 512, 0, units)
    most = 256 // units.pixels // 2 * units.pixels
    with pytest.raises(ValueError, match=rf"half of tile_height 256; set tile_overlap to at most {most}\."):
        TileLayout.of_pixels(grid, 256, 512, 4 * most, units)


def test_a_mask_with_an_axis_of_time_leaves_the_same_tiles_out() -> None:
    units = PICTURE_KINDS["qwen_image"].units
    layout = TileLayout.of_pixels(units.grid(512, 512), 256, 256, 0, units)
    wanted = torch.zeros(2, 1, 1, 64, 64)
    wanted[1, ..., 40, 3] = 1
    (left,) = layout.needed_for(wanted).tiles
    assert (left.y, left.x) == (16, 0)
    assert layout.needed_for(wanted[:, :, 0]).tiles == (left,)


SD3 = FrameUnits(8, 2, most_units=192)


def test_no_automatic_tile_is_longer_than_the_model_takes() -> None:
    """SD3's table of positions ends at 192 tokens, 3072 px, whatever the card holds."""
    plenty = MemoryPlan((CallMemory(Activations(2432)),))
    for height, width in ((3072, 3072), (3088, 2000), (4096, 8192)):
        grid = SD3.grid(height, width)
        layout = choose_tiles(grid, memory=plenty, total=10**15, units=SD3)
        assert max(layout.tile) <= 192 and layout.is_whole == (max(height, width) <= 3072)
        assert layout.units == SD3 and all(tile.cells == 2 for tile in layout.tiles)
    half = choose_tiles(SD3.grid(4096, 4096), tile_width=1024, memory=plenty, total=10**15, units=SD3)
    assert half.tile[1] == 64 and half.tile[0] <= 192


@pytest.mark.parametrize("side", ["tile_width", "tile_height"])
def test_a_tile_that_is_longer_than_the_model_takes_is_refused(side: str) -> None:
    with pytest.raises(ValueError, match=rf"{side} is 4096, but the model has positions for 3072 px a side"):
        choose_tiles(SD3.grid(4096, 4096), **{side: 4096}, memory=MemoryPlan(), total=10**15, units=SD3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="set tile_overlap to at most 1536"):
        choose_tiles(SD3.grid(4096, 4096), overlap=3200, memory=MemoryPlan(), total=10**15, units=SD3)


def test_an_unknown_models_estimate_decides_by_its_tokens() -> None:
    """Any object that says what a call takes serves the rule; a UNet's unit is several of its tokens."""
    asked: list[int] = []

    class Estimate:
        def peak_bytes(self, image: int, *, batch: int = 1) -> int:
            asked.append(image)
            return image * batch * 2**16

    units = PICTURE_KINDS["sdxl"].units
    grid = units.grid(4096, 4096)
    layout = choose_tiles(grid, memory=MemoryPlan((Estimate(),)), total=4 * GIB, units=units)
    assert 256 * 256 in asked and not layout.is_whole
    assert units.tokens(layout.tile) * 2**16 <= 3 * GIB
    assert Stage(1, (4096, 4096), (4096, 4096), 0.5, 0, units=units).tokens == 256 * 256
