"""Borders of tiles against the whole frame: the picture changes there no more than it does without tiles."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.host.support_comfy.flux import build_flux
from tests.host.support_comfy.pictures import picture
from tests.host.support_comfy.sampling import conditioning, run_node

TRAINED = Path(__file__).parents[2] / "demo" / "tiny_flux" / "tiny_flux.safetensors"
HEIGHT, WIDTH = 256, 384


class Means:
    """A VAE of plain means over 8 x 8 pixels, so that a seam in the latent is one in the picture."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        means = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        return (means * 2 - 1).repeat(1, 6, 1, 1)[:, :16]

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(samples[:, :3] / 2 + 0.5, scale_factor=8, mode="nearest").movedim(1, -1)


class Codec:
    """The trained model's own stand-in for a VAE, as far as the node asks."""

    def __init__(self) -> None:
        from comfy.latent_formats import Flux

        self.space, self.codec = Flux(), demo_module("tiny_flux.codec")

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.space.process_out(self.codec.encode(pixels.movedim(-1, 1)))

    def decode(self, samples: torch.Tensor) -> torch.Tensor:
        return self.codec.decode(self.space.process_in(samples)).clamp(0, 1).movedim(1, -1)


def demo_module(name: str) -> Any:
    """A module of the demo, which is on no path here, under a name that is nobody else's."""
    package = "clear_tests_demo"
    if package not in sys.modules:
        folder = TRAINED.parents[1]
        spec = importlib.util.spec_from_file_location(
            package, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[package] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{package}.{name}")


@pytest.fixture(scope="module", params=["random", *(["trained"] if TRAINED.exists() else [])])
def model(request, host, pack) -> tuple[Any, list, Any]:
    """A small FLUX with windows, a prompt and a VAE for it: the random one, and the trained one where it is there."""
    if request.param == "random":
        generator = torch.Generator().manual_seed(2)
        prompt = conditioning(torch.randn(1, 7, 64, generator=generator), torch.randn(1, 32, generator=generator), 1.0)
        patcher, vae = build_flux(), Means()
    else:
        import comfy.sd

        context, pooled = demo_module("tiny_flux.caption").encode_captions([""])
        prompt, vae = conditioning(context, pooled, 1.0), Codec()
        patcher = comfy.sd.load_diffusion_model(str(TRAINED))
    return run_node(host.stock("CLEARAttention"), model=patcher, radius=8, down_factor=1)[0], prompt, vae


@pytest.fixture(scope="module")
def enlarged(host, pack, model):
    """``enlarged(**widgets)`` is the picture at twice its size, (H, W, 3)."""
    patched, prompt, vae = model

    def run(**widgets: Any) -> torch.Tensor:
        with torch.inference_mode():
            out, _, _ = run_node(
                host.stock("CLEARUpscale"),
                image=picture(HEIGHT, WIDTH),
                model=patched,
                vae=vae,
                positive=prompt,
                steps=4,
                denoise=0.5,
                seed=3,
                **widgets,
            )
        return out[0]

    return run


def change_at_borders(pixels: torch.Tensor, layout: Any) -> float:
    """Mean absolute difference across the rows and columns where a tile begins or ends."""
    steps = []
    for axis in (0, 1):
        edges = {16 * edge for start in layout.starts(axis) for edge in (start, start + layout.tile[axis])}
        places = torch.tensor(sorted(edges - {0, pixels.shape[axis]}))
        steps.append((pixels.index_select(axis, places) - pixels.index_select(axis, places - 1)).abs().mean())
    return float(sum(steps) / 2)


def test_borders_change_no_more_than_the_whole_frame_does(pack, enlarged):
    sdedit = importlib.import_module(f"{pack.__name__}.clear_core.sdedit")
    grid = (2 * HEIGHT // 16, 2 * WIDTH // 16)
    whole = enlarged(tile_width=2 * WIDTH, tile_height=2 * HEIGHT)
    ratios = {}
    # Tiles of 256 px fit the frame exactly, so that without an overlap there is none.
    for tile, overlap in ((320, 128), (256, 0)):
        layout = sdedit.TileLayout.of_pixels(grid, tile, tile, overlap)
        assert len(layout.tiles) >= 4
        tiled = enlarged(tile_width=tile, tile_height=tile, tile_overlap=overlap)
        ratios[overlap] = change_at_borders(tiled, layout) / change_at_borders(whole, layout)
    assert abs(ratios[128] - 1) < 0.05, ratios
    # The measure sees a seam where there is one.
    assert abs(ratios[0] - 1) > 2 * abs(ratios[128] - 1), ratios
