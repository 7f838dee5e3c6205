"""One helper node for trying CLEAR in ComfyUI on the tiny FLUX: its captions as a CLIP, its codec as a VAE.

Not part of the node pack: name this folder as a ``custom_nodes`` path in ``extra_model_paths.yaml``
(demo/README.md). It loads the rest from its checkout.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from comfy.latent_formats import Flux as FluxLatents
from comfy_api.latest import ComfyExtension, io

DEMO = Path(__file__).resolve().parents[1]
# A distinct name: the host or another pack may have a "demo".
PACKAGE = "clear_flux_demo"


def demo_module(name: str) -> ModuleType:
    """A module of the checkout's demo, whose folder is not on the import path."""
    if PACKAGE not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PACKAGE, DEMO / "__init__.py", submodule_search_locations=[str(DEMO)]
        )
        if spec is None:
            raise ImportError(f"{DEMO} is not a package; expected the demo folder of a CLEAR checkout.")
        sys.modules[PACKAGE] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{PACKAGE}.{name}")


class Captions:
    """The methods of a CLIP that the stock text nodes call."""

    def tokenize(self, text: str, **options: Any) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str, **options: Any) -> list[list[Any]]:
        """Conditioning: (1, 24, 128) and a pooled (1, 64)."""
        context, pooled = demo_module("tiny_flux.caption").encode_captions([tokens])
        return [[context, {"pooled_output": pooled}]]


class Codec:
    """The methods of a VAE that the stock image nodes call."""

    def __init__(self) -> None:
        self.format = FluxLatents()
        self.codec = demo_module("tiny_flux.codec")

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) in 0 to 1 to (B, 16, H/8, W/8) in the host's scale; sides are cropped to multiples of 16."""
        height, width = (side // 16 * 16 for side in pixels.shape[1:3])
        return self.format.process_out(self.codec.encode(pixels[:, :height, :width, :3].movedim(-1, 1).float()))

    def decode(self, samples: torch.Tensor, **options: Any) -> torch.Tensor:
        """(B, 16, h, w) to (B, 8h, 8w, 3), 0 to 1."""
        return self.codec.decode(self.format.process_in(samples.float())).clamp(0, 1).movedim(1, -1)

    def decode_tiled(self, samples: torch.Tensor, **options: Any) -> torch.Tensor:
        """As :meth:`decode`: blocks of 8 x 8 pixels are independent."""
        return self.decode(samples)

    # The host's ControlNets and its tiled decoding call these.
    def spacial_compression_encode(self) -> int:
        """Pixels along a latent's side."""
        return 8

    spacial_compression_decode = spacial_compression_encode

    def temporal_compression_decode(self) -> None:
        """Pictures, not video."""


class TinyFluxTextAndPixels(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TinyFluxTextAndPixels",
            display_name="Tiny FLUX: text and pixels",
            category="clear demo",
            description="Stands in for the text encoders and the VAE of the tiny FLUX.",
            inputs=[],
            outputs=[io.Clip.Output(), io.Vae.Output()],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(Captions(), Codec())


class TinyFluxExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [TinyFluxTextAndPixels]


async def comfy_entrypoint() -> TinyFluxExtension:
    return TinyFluxExtension()
