"""The node of one single stage, which CLEARUpscale puts into the running graph."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..clear_core.sdedit import AUTO, COLOR_FIXES, GUIDES
from .host.number_inputs import with_checked_numbers
from .host.samplers import sampler_names, scheduler_names
from .host.upscale.expansion import STAGE_NODE
from .host.upscale.run import run_single_stage
from .upscale import upscale_sockets


class CLEARUpscaleStage(io.ComfyNode):
    """IMAGE to IMAGE: one stage of CLEARUpscale."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=STAGE_NODE,
            display_name="CLEAR Upscale, one stage",
            category="image/upscaling",
            description="One stage of CLEAR Upscale, which adds it by itself.",
            is_deprecated=True,  # Keeps it out of the menus.
            is_input_list=True,  # The stages of one item would run for every item otherwise.
            inputs=[
                *upscale_sockets(),
                io.Int.Input("item", min=0, tooltip="Index in a list of pictures; 0 without a list."),
                io.Int.Input("number", tooltip="Number of this stage; 1 for the first."),
                io.Int.Input("height", tooltip="Height of the output picture in pixels."),
                io.Int.Input("width", tooltip="Width of the output picture in pixels."),
                io.Float.Input("denoise", tooltip="Denoising strength."),
                io.Int.Input("seed", max=2**64 - 1, tooltip="Seed of the noise."),
                io.Int.Input("steps", tooltip="Steps of this stage."),
                io.Float.Input("cfg", tooltip="Classifier-free guidance."),
                io.Combo.Input("sampler_name", options=sampler_names(), tooltip="Method of removing the noise."),
                io.Combo.Input("scheduler", options=scheduler_names(), tooltip="Spacing of the noise levels."),
                io.Int.Input("tile_width", tooltip="Width of a tile in pixels; 0 is automatic."),
                io.Int.Input("tile_height", tooltip="Height of a tile in pixels; 0 is automatic."),
                io.Int.Input("tile_overlap", tooltip="Pixels that neighbouring tiles share."),
                io.Combo.Input("color_fix", options=list(COLOR_FIXES), tooltip="Source of the coarse colours."),
                io.Float.Input("shift", tooltip="Shift of the noise levels; 0 is the family's recipe."),
                io.Combo.Input(
                    "guide", options=[name for name in GUIDES if name != AUTO], tooltip="Guidance schedule."
                ),
                io.Float.Input("guide_strength", tooltip="Factor on the guidance."),
                io.Int.Input("guide_level", tooltip="Guidance level."),
                io.Int.Input("vae_tile_size", tooltip="Side of the VAE's tiles in pixels; 0 is automatic."),
            ],
            outputs=[
                io.Image.Output("image", tooltip="The picture after this stage."),
                io.Latent.Output("latent", tooltip="The latent after this stage."),
            ],
        )

    @classmethod
    @with_checked_numbers
    def execute(cls, **lists: list[Any]) -> io.NodeOutput:
        return io.NodeOutput(*run_single_stage(lists))
