"""The node that shows what windows do to a model and a picture, with lines to quote in a bug report."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ..clear_core.families import FLUX1
from ..clear_core.inspection.page import draw_note, draw_sheet
from ..clear_core.inspection.report import note, report
from .host.inspect.read_model import inspect_model
from .host.later_options import with_kept_page, with_search_aliases
from .host.model.family import model_shape
from .host.model.throughput import last_throughput
from .host.number_inputs import with_checked_numbers
from .host.pack import versions

PLAIN_SIDE = 4096


class CLEARInspect(io.ComfyNode):
    """MODEL to IMAGE and STRING, both shown on the node: it needs nothing after it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="CLEARInspect",
            display_name="CLEAR Inspect",
            category="model/patch",
            description="Shows how far each part of a picture looks, the work, time and memory saved at 1K to 8K on "
            "this machine, and all other changes to the model. Nothing is sampled.",
            is_output_node=True,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model as it enters the sampler: after CLEAR Attention and everything else. Without "
                    "CLEAR, the node shows the possible savings.",
                ),
                io.Image.Input(
                    "image", optional=True, tooltip="A picture to draw the window on, such as the one to be enlarged."
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    tooltip="Only its size is used. Without picture and latent: 4096 x 4096 px.",
                ),
                io.Float.Input(
                    "upscale_by",
                    default=1.0,
                    min=1.0,
                    max=8.0,
                    step=0.05,
                    optional=True,
                    tooltip="Planned factor on width and height, as on CLEAR Upscale.",
                ),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The page shown on the node: window, block map, costs."),
                io.String.Output("text", tooltip="The same as text; its last lines are for bug reports."),
            ],
        )
        return with_search_aliases(
            with_kept_page(schema),
            "debug",
            "info",
            "cost",
            "attention window",
            "benchmark",
            "bug report",
            "show model patches",
            "clear flux",
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """Runs again when there is a new measurement to show."""
        return repr(last_throughput())

    @classmethod
    @with_checked_numbers
    def execute(
        cls, model: Any, image: Tensor | None = None, latent: dict[str, Any] | None = None, upscale_by: float = 1.0
    ) -> io.NodeOutput:
        try:
            model_shape(model)
        except ValueError as refused:
            sentence = str(refused)[:1].upper() + str(refused)[1:]
            return shown(draw_note(sentence, versions()), note(sentence, versions()))
        size, origin, batch = source_of(image, latent)
        facts = inspect_model(model, size, upscale_by if batch else 1.0, origin, max(batch, 1))
        return shown(draw_sheet(facts, picture_of(image)), report(facts))


def source_of(image: Tensor | None, latent: dict[str, Any] | None) -> tuple[tuple[int, int], str, int]:
    """((height, width) in px, its origin, pictures in a batch); 0 pictures if nothing is connected."""
    if image is not None:
        return (image.shape[1], image.shape[2]), "picture", image.shape[0]
    if latent is not None:
        samples = latent["samples"]
        return (
            (samples.shape[-2] * FLUX1.latent_pixels, samples.shape[-1] * FLUX1.latent_pixels),
            "latent",
            samples.shape[0],
        )
    return (PLAIN_SIDE, PLAIN_SIDE), "nothing connected", 0


def picture_of(image: Tensor | None) -> Image.Image | None:
    """The first picture of a batch (B, H, W, C) in 0 to 1."""
    if image is None:
        return None
    pixels = (image[0, ..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return Image.fromarray(pixels.contiguous().numpy())


def shown(page: Image.Image, text: str) -> io.NodeOutput:
    """Both outputs, and both on the node."""
    pixels = torch.frombuffer(bytearray(page.tobytes()), dtype=torch.uint8)
    image = (pixels.float() / 255).view(1, page.height, page.width, 3)
    return io.NodeOutput(image, text, ui={**ui.PreviewImage(image).as_dict(), **ui.PreviewText(text).as_dict()})
