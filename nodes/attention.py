"""The node that gives a model its windows."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..clear_core.attention import BACKENDS
from ..clear_core.rope import NTK
from ..clear_core.settings import CONTROLNET, PROPORTIONAL, ClearSettings
from ..clear_core.weights import read_clear_file
from .host.later_options import with_search_aliases
from .host.model.apply import apply_clear
from .host.number_inputs import with_checked_numbers
from .host.parallel.strips import add_strips
from .host.server.weight_files import NO_WEIGHTS, installed_name, installed_names, missing_sentence, namesakes, path_of

ADVANCED = {"advanced": True}  # As extra_dict: older hosts do not know the argument.


class CLEARAttention(io.ComfyNode):
    """MODEL to MODEL: windowed attention, and the weights that were distilled for it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        # The order of the widgets is frozen: saved workflows restore them by position. All are optional, since the
        # front end lists required inputs first.
        schema = io.Schema(
            node_id="CLEARAttention",
            display_name="CLEAR Attention (hi-res)",
            category="model/patch",
            description="Lets FLUX and other models make 2K to 8K pictures: every part of the picture attends to the "
            "prompt and to a circle around it, a small share of what attention to the whole picture costs.",
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="FLUX.1 and its fine-tunes, with distilled weights or without; and training-free: Chroma, "
                    "FLUX.2, Krea 2, Qwen-Image, Z-Image, Lumina 2, SD3.5, HiDream-I1, HunyuanImage 2.1, Kandinsky 5, "
                    "Wan.",
                ),
                io.Combo.Input(
                    "weights_name",
                    options=[NO_WEIGHTS, *installed_names()],
                    default=NO_WEIGHTS,
                    optional=True,
                    tooltip="Weights distilled for the window, from models/clear. none: training-free, the window "
                    "runs on the model's own weights with an overview of the rest (a hybrid), which costs some "
                    "quality.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Share of the distilled weights; 0 is the model's own weights. The window stays the same.",
                ),
                io.Int.Input(
                    "radius",
                    default=0,
                    min=0,
                    max=4096,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Window radius in tokens (a token is 16 x 16 pixels in most models). 0: the radius of the "
                    "weights; without weights 16, and 32 where the model is called for more than 16384 tokens (2048 x "
                    "2048 pixels of such models).",
                ),
                io.Float.Input(
                    "ntk_factor",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Stretches the position encoding for large pictures. 0: automatic, 1 up to 2 megapixels "
                    "and 10 above; 1: off.",
                ),
                io.Combo.Input(
                    "proportional_attention",
                    options=list(PROPORTIONAL),
                    default="auto",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Sharpens attention as the number of tokens grows. auto: on above 2 megapixels.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Start of the window in the sampling, 0 to 1. Before it, attention is dense (to the whole "
                    "picture).",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="End of the window in the sampling, 0 to 1. After it, attention is dense (to the whole "
                    "picture).",
                ),
                io.String.Input(
                    "dense_blocks",
                    default="",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Blocks that keep dense attention: 0, 1, 54-56 counts all blocks, double blocks first; "
                    "d0-3, s35-37 counts double and single blocks apart.",
                ),
                io.Int.Input(
                    "min_tokens",
                    default=0,
                    min=0,
                    max=1 << 24,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Pictures with fewer image tokens than this get no window (1024 x 1024 pixels are 4096 "
                    "tokens).",
                ),
                io.Combo.Input(
                    "controlnet",
                    options=list(CONTROLNET),
                    default="auto",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Gives ControlNets the same windows. auto: above 2 megapixels.",
                ),
                io.Combo.Input(
                    "backend",
                    options=list(BACKENDS),
                    default="auto",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Method of computing the windows; all give the same picture. auto: the fastest that works "
                    "here; dense: slow, for comparison.",
                ),
                io.Int.Input(
                    "down_factor",
                    default=0,
                    min=0,
                    max=64,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="Adds an overview of the whole picture, pooled over squares of this side in tokens. 0: as "
                    "in the weights, or 4 without weights; 1: none, for weights without one.",
                ),
                io.Combo.Input(
                    "ntk",
                    options=list(NTK),
                    default="constant",
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="How the position encoding is stretched. constant: by ntk_factor in every step; clipped: "
                    "the same, but no more than plain interpolation would (I-Max); fading: most at the start of the "
                    "sampling, not at all at its end (DyPE).",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with CLEAR attention; the input model stays as it is.")],
        )
        return with_search_aliases(
            schema,
            "windowed attention",
            "local attention",
            "linear attention",
            "flux 4k",
            "flux 8k",
            "high resolution",
            "hires",
            "speed up flux",
            "clear flux",
        )

    @classmethod
    def validate_inputs(cls, weights_name: str = NO_WEIGHTS) -> bool | str:
        """Stands in for the host's own check of the list, which knows neither moved files nor what to do."""
        if weights_name == NO_WEIGHTS or installed_name(str(weights_name)):
            return True
        return missing_sentence(str(weights_name))

    @classmethod
    @with_checked_numbers
    def execute(
        cls,
        model: Any,
        weights_name: str = NO_WEIGHTS,
        strength: float = 1.0,
        radius: int = 0,
        down_factor: int = 0,
        **settings: Any,
    ) -> io.NodeOutput:
        """``settings`` are the other widgets; their names and defaults are those of :class:`ClearSettings`."""
        used = weights_name != NO_WEIGHTS
        file = read_clear_file(path_of(weights_name)) if used else None
        chosen = ClearSettings.of_widgets(radius, down_factor, file, **settings)
        remarks = namesakes(weights_name) if used else ()
        clone = apply_clear(model, chosen, file, strength, remarks)
        return io.NodeOutput(add_strips(clone))
