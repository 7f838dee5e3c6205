"""The node that makes a picture larger, and the node of its single stages."""

from __future__ import annotations

import logging

from comfy.samplers import KSampler
from comfy_api.latest import io

from ..clear_core.sdedit import COLOR_FIXES, Stage, plan_stages
from .attention import ADVANCED
from .host.model.family import model_shape
from .host.search_aliases import with_search_aliases
from .host.upscale.expansion import STAGE_NODE, expand_stages, links_of
from .host.upscale.info import attention_words, info_text
from .host.upscale.progress import RunPlan, StageProgress, plan_of_running_node, say_on_node, time_words
from .host.upscale.stage import StageInputs, StageSettings, run_stage

MOST_PIXELS = 65536


def sockets() -> list[io.Input]:
    """Sockets of both nodes."""
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
                *sockets(),
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
                    options=KSampler.SAMPLERS,
                    default="euler",
                    optional=True,
                    tooltip="How the noise is removed.",
                ),
                io.Combo.Input(
                    "scheduler",
                    options=KSampler.SCHEDULERS,
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
    def execute(
        cls,
        image,
        model,
        positive,
        vae,
        negative=None,
        upscale_model=None,
        mask=None,
        upscale_by: float = 2.0,
        seed: int = 0,
        steps: int = 20,
        cfg: float = 1.0,
        sampler_name: str = "euler",
        scheduler: str = "simple",
        denoise: float = 0.5,
        stages: int = 0,
        stage_denoise: str = "0.7, 0.5",
        tile_width: int = 0,
        tile_height: int = 0,
        tile_overlap: int = 128,
        color_fix: str = "none",
        shift: float = 3.0,
    ) -> io.NodeOutput:
        model_shape(model)
        plan = plan_stages(
            image.shape[1],
            image.shape[2],
            upscale_by=upscale_by,
            stages=stages,
            denoise=denoise,
            stage_denoise=stage_denoise,
            seed=seed,
        )
        inputs = StageInputs(model, positive, vae, negative, upscale_model, mask)
        settings = StageSettings(
            steps, cfg, sampler_name, scheduler, tile_width, tile_height, tile_overlap, color_fix, shift
        )
        info = info_text(plan, inputs, settings, image.shape[0])
        if "dense" in (words := attention_words(model)):
            logging.warning("CLEAR: attention is %s.", words)
        node = cls.hidden.unique_id
        say_on_node(f"{info}\n{time_words(plan, steps)}", node)
        links = links_of(cls.hidden.dynprompt, node)
        if links is not None and {"image", "model", "positive", "vae"} <= links.keys():
            graph, picture, latent = expand_stages(plan, settings, links, node)
            return io.NodeOutput(picture, latent, info, expand=graph)
        run = RunPlan(plan, steps, node)
        for stage in plan:
            image, latent = run_stage(image, inputs, stage, settings, StageProgress(run, stage))
        return io.NodeOutput(image, latent, info)


class CLEARUpscaleStage(io.ComfyNode):
    """One stage of :class:`CLEARUpscale`, which puts it into the graph while it runs."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=STAGE_NODE,
            display_name="CLEAR Upscale, one stage",
            category="image/upscaling",
            description="A part of CLEAR Upscale (FLUX), which adds it by itself.",
            is_deprecated=True,  # Keeps it out of the menus.
            inputs=[
                *sockets(),
                io.Int.Input("number", tooltip="Which stage this is; 1 for the first."),
                io.Int.Input("height", tooltip="Height of the picture that goes out, in pixels."),
                io.Int.Input("width", tooltip="Width of the picture that goes out, in pixels."),
                io.Float.Input("denoise", tooltip="How much is redone."),
                io.Int.Input("seed", max=2**64 - 1, tooltip="Seed of the noise."),
                io.Int.Input("steps", tooltip="Steps that are run."),
                io.Float.Input("cfg", tooltip="Classifier-free guidance."),
                io.Combo.Input("sampler_name", options=KSampler.SAMPLERS, tooltip="How the noise is removed."),
                io.Combo.Input("scheduler", options=KSampler.SCHEDULERS, tooltip="How the noise levels are spaced."),
                io.Int.Input("tile_width", tooltip="Width of a tile in pixels; 0 is automatic."),
                io.Int.Input("tile_height", tooltip="Height of a tile in pixels; 0 is automatic."),
                io.Int.Input("tile_overlap", tooltip="How many pixels neighbouring tiles share."),
                io.Combo.Input("color_fix", options=list(COLOR_FIXES), tooltip="Where coarse colours come from."),
                io.Float.Input("shift", tooltip="Shift of the noise levels; 0 is the model's own."),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The picture after this stage."),
                io.Latent.Output("latent", tooltip="The latent after this stage."),
            ],
        )

    @classmethod
    def execute(
        cls,
        image,
        model,
        positive,
        vae,
        number: int,
        height: int,
        width: int,
        denoise: float,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        tile_width: int,
        tile_height: int,
        tile_overlap: int,
        color_fix: str,
        shift: float,
        negative=None,
        upscale_model=None,
        mask=None,
    ) -> io.NodeOutput:
        stage = Stage(number, tuple(image.shape[1:3]), (height, width), denoise, seed)
        settings = StageSettings(
            steps, cfg, sampler_name, scheduler, tile_width, tile_height, tile_overlap, color_fix, shift
        )
        progress = StageProgress(plan_of_running_node() or RunPlan((stage,), steps), stage)
        inputs = StageInputs(model, positive, vae, negative, upscale_model, mask)
        return io.NodeOutput(*run_stage(image, inputs, stage, settings, progress))
