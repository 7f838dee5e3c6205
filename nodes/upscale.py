"""The node that makes a picture larger."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..clear_core.sdedit import AUTO, COLOR_FIXES, DEFAULT_OVERLAP, GUIDES
from ..clear_core.sdedit.guides import GUIDED_ABOVE
from .attention import ADVANCED
from .host.later_options import with_search_aliases
from .host.number_inputs import with_checked_numbers
from .host.samplers import sampler_names, scheduler_names
from .host.upscale.run import run_upscale

MOST_PIXELS = 65536


def upscale_sockets() -> list[io.Input]:
    """The sockets of CLEARUpscale and of its single stages."""
    return [
        io.Image.Input("image", tooltip="The picture to enlarge, of any size; a batch is processed together."),
        io.Model.Input(
            "model",
            tooltip="Any model that makes pictures. FLUX.1 can have windows from CLEAR Attention; without them "
            "attention is dense, which is slow from 2K on.",
        ),
        io.Conditioning.Input("positive", tooltip="The prompt. Set FLUX's guidance there, with FluxGuidance."),
        io.Vae.Input("vae", tooltip="The VAE that belongs to the model. It works on large pictures in tiles."),
        io.Conditioning.Input("negative", optional=True, tooltip="The negative prompt; used if cfg is above 1."),
        io.UpscaleModel.Input(
            "upscale_model", optional=True, tooltip="Enlarges the picture before each stage. Without it, Lanczos does."
        ),
        io.Mask.Input("mask", optional=True, tooltip="The area to redo; the rest is only enlarged."),
    ]


class CLEARUpscale(io.ComfyNode):
    """IMAGE to IMAGE: enlarge, noise, denoise, in stages."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        # The order of the widgets is frozen: saved workflows restore them by position. All are optional, since the
        # front end lists required inputs first.
        schema = io.Schema(
            node_id="CLEARUpscale",
            display_name="CLEAR Upscale",
            category="image/upscaling",
            description="Enlarges a picture and redoes its detail with FLUX or another model, at 2K to 8K, whole or "
            "in tiles that are blended at every step. Finished stages are kept: another run with the same settings "
            "continues after them.",
            enable_expand=True,
            inputs=[
                *upscale_sockets(),
                io.Model.Input(
                    "later_model",
                    optional=True,
                    tooltip="Another model for the stages after the first, such as one with a LoRA for large pictures.",
                ),
                io.Float.Input(
                    "upscale_by",
                    default=2.0,
                    min=1.0,
                    max=8.0,
                    step=0.05,
                    optional=True,
                    tooltip="Factor on width and height. 1 redoes the picture at its own size.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    optional=True,
                    tooltip="Seed of the noise; each stage uses the next number. The same seed gives the same picture.",
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=10000,
                    optional=True,
                    tooltip="Steps per stage, as in KSampler: the same number at any denoise.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    optional=True,
                    tooltip="Classifier-free guidance. Use 1 for FLUX dev; it is also twice as fast.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=sampler_names(),
                    default="euler",
                    optional=True,
                    tooltip="Method of removing the noise.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=scheduler_names(),
                    default="simple",
                    optional=True,
                    tooltip="Spacing of the noise levels.",
                ),
                io.Float.Input(
                    "denoise",
                    default=0.5,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Denoising strength if there is one stage: low keeps the picture, high invents detail.",
                ),
                io.Int.Input(
                    "stages",
                    default=0,
                    min=0,
                    max=8,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Number of stages. 0: as few as possible, each enlarging at most twice.",
                ),
                io.String.Input(
                    "stage_denoise",
                    default="0.7, 0.5",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Denoising strengths if there are several stages, one number each; the last one is "
                    "repeated. Empty: denoise for all.",
                ),
                io.Int.Input(
                    "tile_width",
                    default=0,
                    min=0,
                    max=MOST_PIXELS,
                    step=16,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Width of a tile in pixels. 0: the whole picture if it fits the card, else the largest "
                    "tile that fits. Lower it if memory runs out.",
                ),
                io.Int.Input(
                    "tile_height",
                    default=0,
                    min=0,
                    max=MOST_PIXELS,
                    step=16,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Height of a tile in pixels. 0: same rule as tile_width.",
                ),
                io.Int.Input(
                    "tile_overlap",
                    default=DEFAULT_OVERLAP,
                    min=0,
                    max=4096,
                    step=16,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Pixels that neighbouring tiles share; the tiles are blended there.",
                ),
                io.Combo.Input(
                    "color_fix",
                    options=list(COLOR_FIXES),
                    default="none",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="wavelet keeps the coarse colours of the picture before each stage.",
                ),
                io.Float.Input(
                    "shift",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Moves the noise levels up. 0: the model family's recipe (FLUX.1: 3; 6 with guide shift at "
                    "denoise 1; others: the model's own). A ModelSampling node before this one takes precedence.",
                ),
                io.Combo.Input(
                    "guide",
                    options=list(GUIDES),
                    default=AUTO,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Keeps the layout of the picture that a stage enlarges, even at denoise 1. auto: off up to "
                    f"{GUIDED_ABOVE} px, shift above. shift holds on; constant holds the coarse parts; decay fades.",
                ),
                io.String.Input(
                    "guide_strength",
                    default="1.0",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Strength of guide, 0 to 2; for several stages one number each, such as 0, 1. The last one "
                    "is repeated; 0 is off.",
                ),
                io.Int.Input(
                    "vae_tile_size",
                    default=0,
                    min=0,
                    max=4096,
                    step=64,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Side of the VAE's tiles in pixels, 64 or more. 0: the whole picture if it fits the card, "
                    "else tiles of 1024 at most. Lower it if memory runs out while encoding or decoding.",
                ),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The enlarged picture."),
                io.Latent.Output(
                    "latent",
                    tooltip="Its latent, padded to what the model takes (16 px for FLUX) at the right and the bottom.",
                ),
                io.String.Output(
                    "info", tooltip="Record of the run, to repeat it: sizes, seeds, strengths, tiles, attention."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
        )
        return with_search_aliases(
            schema,
            "enlarge image",
            "hires fix",
            "high resolution",
            "tiled upscale",
            "ultimate upscale",
            "sdedit",
            "4k",
            "8k",
            "img2img upscale",
            "clear flux",
        )

    @classmethod
    @with_checked_numbers
    def execute(cls, image: Tensor, **inputs: Any) -> io.NodeOutput:
        result = run_upscale(image, inputs, cls.hidden.unique_id, cls.hidden.dynprompt)
        return io.NodeOutput(result.image, result.latent, result.info, expand=result.graph)
