"""The node that makes a picture larger."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..clear_core.sdedit import COLOR_FIXES
from .attention import ADVANCED
from .host.samplers import sampler_names, scheduler_names
from .host.search_aliases import with_search_aliases
from .host.upscale.run import run_upscale

MOST_PIXELS = 65536


def upscale_sockets() -> list[io.Input]:
    """The sockets of CLEARUpscale and of its single stages."""
    return [
        io.Image.Input("image", tooltip="The picture to enlarge, of any size; a batch is worked on together."),
        io.Model.Input(
            "model",
            tooltip="A FLUX.1 model, with windows from CLEAR Attention. Without them it attends "
            "densely, which is slow from 2K on.",
        ),
        io.Conditioning.Input("positive", tooltip="The prompt; guidance is set there, with FluxGuidance."),
        io.Vae.Input("vae", tooltip="FLUX's VAE. Large pictures go through it in tiles."),
        io.Conditioning.Input(
            "negative", optional=True, tooltip="The negative prompt; it counts where cfg is above 1."
        ),
        io.UpscaleModel.Input(
            "upscale_model", optional=True, tooltip="Enlarges the picture before each stage. Without it Lanczos does."
        ),
        io.Mask.Input("mask", optional=True, tooltip="Where the picture is redone; elsewhere it is only enlarged."),
    ]


class CLEARUpscale(io.ComfyNode):
    """IMAGE to IMAGE: enlarge, noise, denoise, in stages."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        # The order of the widgets is frozen: saved workflows restore them by position. All are optional, since the
        # front end lists required inputs first.
        schema = io.Schema(
            node_id="CLEARUpscale",
            display_name="CLEAR Upscale (FLUX)",
            category="image/upscaling",
            description="Makes a picture larger and redoes its detail with FLUX, at 2K to 8K, whole or in tiles that "
            "are blended at every step. Finished stages are kept: running again "
            "with the same settings goes on after them.",
            enable_expand=True,
            inputs=[
                *upscale_sockets(),
                io.Float.Input(
                    "upscale_by",
                    default=2.0,
                    min=1.0,
                    max=8.0,
                    step=0.05,
                    optional=True,
                    tooltip="How many times wider and higher. 1 redoes the picture at its size.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    optional=True,
                    tooltip="Seed of the noise; each stage takes the next number. The same seed gives the same "
                    "picture.",
                ),
                io.Int.Input(
                    "steps",
                    default=20,
                    min=1,
                    max=10000,
                    optional=True,
                    tooltip="Steps that each stage runs, as in KSampler: at any denoise this many are run.",
                ),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    optional=True,
                    tooltip="Classifier-free guidance. FLUX dev wants 1, which is also twice as fast.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=sampler_names(),
                    default="euler",
                    optional=True,
                    tooltip="How the noise is removed.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=scheduler_names(),
                    default="simple",
                    optional=True,
                    tooltip="How the noise levels are spaced.",
                ),
                io.Float.Input(
                    "denoise",
                    default=0.5,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="How much is redone where there is one stage: low keeps the picture, high invents detail.",
                ),
                io.Int.Input(
                    "stages",
                    default=0,
                    min=0,
                    max=8,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="In how many steps of size. 0: as few as enlarge at most twice each.",
                ),
                io.String.Input(
                    "stage_denoise",
                    default="0.7, 0.5",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="How much is redone where there are several stages, one number each; the last one goes on. "
                    "Empty: denoise for all.",
                ),
                io.Int.Input(
                    "tile_width",
                    default=0,
                    min=0,
                    max=MOST_PIXELS,
                    step=16,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Width of a tile in pixels. 0: the whole frame where it fits the card, else as large as "
                    "fits. Set it lower if memory runs out.",
                ),
                io.Int.Input(
                    "tile_height",
                    default=0,
                    min=0,
                    max=MOST_PIXELS,
                    step=16,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Height of a tile in pixels. 0: as for the width.",
                ),
                io.Int.Input(
                    "tile_overlap",
                    default=128,
                    min=0,
                    max=4096,
                    step=16,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="How many pixels neighbouring tiles share and are blended over.",
                ),
                io.Combo.Input(
                    "color_fix",
                    options=list(COLOR_FIXES),
                    default="none",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="wavelet holds the coarse colours to those of the picture before each stage.",
                ),
                io.Float.Input(
                    "shift",
                    default=3.0,
                    min=0.0,
                    max=100.0,
                    step=0.01,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Moves the noise levels up. 0: the model's own. A ModelSampling node before this one wins.",
                ),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The enlarged picture."),
                io.Latent.Output(
                    "latent", tooltip="Its latent, padded to whole tokens of 16 px at the right and the bottom."
                ),
                io.String.Output(
                    "info",
                    tooltip="What was done, so that it can be repeated: sizes, seeds, strengths, tiles, attention.",
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
    def execute(cls, image: Tensor, **inputs: Any) -> io.NodeOutput:
        result = run_upscale(image, inputs, cls.hidden.unique_id, cls.hidden.dynprompt)
        return io.NodeOutput(result.image, result.latent, result.info, expand=result.graph)
