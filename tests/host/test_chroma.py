"""Chroma, whose forward calls no ``post_input`` patch and makes its position ids in the model's own dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.host.support_comfy import relatives
from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.oracle import with_oracle_windows
from tests.host.support_comfy.pictures import picture
from tests.host.support_comfy.positions import EMBEDDER, predict_by_hand, recorded_ids, rotations
from tests.host.support_comfy.sampling import conditioning, predict, relative_error, run_node

TEXT = 7
SIGMA = 0.6
GRID, TILE = (10, 26), (8, 11)


def noise(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 16, height, width, generator=torch.Generator().manual_seed(1))


def prompt(**extra: Any) -> list:
    generator = torch.Generator().manual_seed(2)
    out = conditioning(torch.randn(1, TEXT, 64, generator=generator), torch.randn(1, 32, generator=generator))
    out[0][1].update(extra)
    return out


@pytest.mark.parametrize("windows", [True, False], ids=["windows", "without CLEAR"])
@pytest.mark.parametrize("references", [False, True], ids=["", "reference latents"])
def test_tiles_are_the_oracles(host, clear_node, host_part, in_tiles, windows, references):
    """Reference latents may come with the prompt; Chroma does not look at them."""
    chroma, x = relatives.build_chroma(), noise(20, 52, batch=2)
    positive = prompt(reference_latents=[noise(6, 8)]) if references else prompt()
    found = predict(in_tiles(clear_node(chroma, radius=3) if windows else chroma, GRID, TILE), x, SIGMA, positive)
    stock = with_oracle_windows(chroma, 3 if windows else 100)
    layout = host_part("upscale.tiled_model").TileLayout(GRID, TILE, 2)
    assert relative_error(found, predict_by_hand(stock, layout, x, SIGMA, prompt())) < 1e-5


@pytest.mark.parametrize("windows", [True, False], ids=["windows", "without CLEAR"])
def test_tiles_have_the_positions_of_the_whole_frame(host, clear_node, in_tiles, windows):
    chroma, x = relatives.build_chroma(), noise(20, 52)
    model = clear_node(chroma, radius=3) if windows else chroma
    with recorded_ids() as seen:
        predict(model, x, SIGMA, prompt())
        predict(in_tiles(model, GRID, TILE), x, SIGMA, prompt())
    whole, *tiles = seen
    image = whole[TEXT:].unflatten(0, GRID)
    starts = [(y, x) for y in (0, 2) for x in (0, 8, 15)]
    assert len(tiles) == len(starts)
    for ids, (top, left) in zip(tiles, starts, strict=True):
        assert torch.equal(ids[:TEXT], whole[:TEXT])
        part = image[top : top + TILE[0], left : left + TILE[1]]
        assert torch.equal(ids[TEXT:], part.flatten(0, 1))


def test_far_from_borders_tiles_are_the_whole_frame(host, clear_node, in_tiles):
    """One block reaches a radius far; text tokens, which see the tile alone, do not come back to the image in it."""
    model = clear_node(relatives.build_chroma(depth=0, depth_single_blocks=1), radius=3)
    x = noise(20, 64)
    whole = predict(model, x, SIGMA, prompt())
    out = predict(in_tiles(model, (10, 32), (10, 18), 4), x, SIGMA, prompt())
    for columns in (slice(0, 2 * 11), slice(2 * 21, 64)):
        assert relative_error(out[..., columns], whole[..., columns]) < 1e-5
    assert relative_error(out, whole) > 1e-5


def test_clear_upscale_in_tiles_is_the_whole_frame_far_from_borders(host, clear_node):
    """The same through the node: one step, and a VAE that looks at 8 x 8 pixels at a time."""

    class Means:
        def encode(self, pixels: torch.Tensor) -> torch.Tensor:
            means = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
            return (means * 2 - 1).repeat(1, 6, 1, 1)[:, :16]

        def decode(self, samples: torch.Tensor) -> torch.Tensor:
            small = samples[:, :3] / 2 + 0.5
            return torch.nn.functional.interpolate(small, scale_factor=8, mode="nearest").movedim(1, -1)

    model = clear_node(relatives.build_chroma(depth=0, depth_single_blocks=1), radius=3)

    def enlarged(side: int) -> torch.Tensor:
        with torch.inference_mode():
            out, _, _ = run_node(
                host.stock("CLEARUpscale"),
                image=picture(80, 256),
                model=model,
                vae=Means(),
                positive=prompt(),
                steps=1,
                denoise=0.5,
                tile_width=side,
                tile_height=side,
                tile_overlap=64,
            )
        return out[0]

    whole, tiled = enlarged(512), enlarged(288)  # A grid of 10 x 32 tokens, and tiles of 10 x 18
    for columns in (slice(0, 16 * 11), slice(16 * 21, 512)):
        assert relative_error(tiled[:, columns], whole[:, columns]) < 1e-5
    assert relative_error(tiled, whole) > 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("side", ["rows", "columns"])
def test_positions_at_4800_px_are_exact(host, clear_node, dtype, side):
    chroma = relatives.build_chroma(dtype=dtype, depth=0, depth_single_blocks=1)
    x = noise(600, 4) if side == "rows" else noise(4, 600)
    seen = {}
    for name, model in (("stock", chroma), ("clear", clear_node(chroma, radius=3, ntk_factor=1.0))):
        model = model.clone()
        kept = model.get_model_object(EMBEDDER).register_forward_hook(
            lambda module, args, out, name=name: seen.setdefault(name, out)
        )
        predict(model, x, SIGMA, prompt())
        kept.remove()
    grid = (300, 2) if side == "rows" else (2, 300)
    axes = slice(8, 36) if side == "rows" else slice(36, 64)
    lines = {}
    for name, rotation in seen.items():
        image = rotation[0, 0, TEXT:].unflatten(0, grid)[..., axes, :, :]
        lines[name] = image[:, 0] if side == "rows" else image[0]
    oracle = rotations(torch.arange(300), 56)
    assert torch.allclose(lines["clear"].double(), oracle, atol=1e-6, rtol=0)
    assert len(torch.unique(lines["clear"].flatten(1), dim=0)) == 300
    # In bfloat16 the host merges neighbours, so that the test sees them.
    assert torch.allclose(lines["stock"].double(), oracle, atol=1e-6, rtol=0) == (dtype == torch.float16)


def test_bfloat16_below_4096_px_is_as_before(host, clear_node):
    """There the host's ids are exact as well: with every block dense nothing changes."""
    chroma, x = relatives.build_chroma(dtype=torch.bfloat16), noise(20, 52)
    dense = clear_node(chroma, radius=3, dense_blocks="0-3")
    assert torch.equal(predict(dense, x, SIGMA, prompt()), predict(chroma, x, SIGMA, prompt()))


def test_nothing_stays_on_the_model(host, clear_node, in_tiles):
    from comfy.ldm.flux.layers import EmbedND

    chroma, x = relatives.build_chroma(), noise(20, 52)
    stock = predict(chroma, x, SIGMA, prompt())
    with Recorder() as log:
        predict(in_tiles(clear_node(chroma, radius=3, ntk_factor=10.0), GRID, TILE), x, SIGMA, prompt())
    assert [line for line in log.messages() if "position" in line] == []
    assert torch.equal(predict(chroma, x, SIGMA, prompt()), stock)
    assert type(chroma.model.diffusion_model.pe_embedder) is EmbedND
    assert chroma.object_patches == {} and chroma.wrappers == {}
    assert chroma.model_options["transformer_options"] == {}
