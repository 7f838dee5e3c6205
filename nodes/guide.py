"""The node that keeps a picture to the layout of a finished one."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..clear_core.guidance import MOST_LEVEL, MOST_STRENGTH, SCHEDULES, GuideSettings
from .attention import ADVANCED
from .host.guidance.guide import apply_guide, check_guide
from .host.later_options import with_search_aliases
from .host.number_inputs import with_checked_numbers

CATEGORY = "model/patch"
ALIASES = ("hires fix", "high resolution", "doubled objects", "structure guidance", "4k", "8k", "clear flux")


def percent_inputs(what: str) -> list[io.Input]:
    """``start_percent`` and ``end_percent`` of a node that guides."""
    return [
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.001,
            optional=True,
            extra_dict=ADVANCED,
            tooltip=f"Start of the {what} in the sampling, 0 to 1.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.001,
            optional=True,
            extra_dict=ADVANCED,
            tooltip=f"End of the {what} in the sampling, 0 to 1.",
        ),
    ]


class CLEARGuide(io.ComfyNode):
    """MODEL and LATENT to MODEL: I-Max's low-resolution guidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        # The order of the widgets is frozen: saved workflows restore them by position.
        schema = io.Schema(
            node_id="CLEARGuide",
            display_name="CLEAR Guide (low-resolution guidance)",
            category=CATEGORY,
            description="Keeps a large picture to the layout of a finished small one while it is sampled, even from "
            "pure noise: no doubled objects. Works with any model, sampler and tiles.",
            inputs=[
                io.Model.Input("model", tooltip="Any image model, before or after its other patches."),
                io.Latent.Input(
                    "guide",
                    tooltip="The finished low-resolution picture, enlarged to the size to sample (Upscale Image), then "
                    "encoded (VAE Encode).",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default="shift",
                    optional=True,
                    tooltip="shift: guides everything first, only the coarse parts later. constant: the coarse parts, "
                    "always. decay: the coarse parts, less and less.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=MOST_STRENGTH,
                    step=0.01,
                    optional=True,
                    tooltip="Factor on the whole guidance; 0 is off.",
                ),
                io.Int.Input(
                    "level",
                    default=1,
                    min=1,
                    max=MOST_LEVEL,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="What counts as coarse: means over squares of 2, 4, 8 ... latent cells (of 8 pixels for "
                    "FLUX). Higher leaves more freedom.",
                ),
                *percent_inputs("guidance"),
            ],
            outputs=[io.Model.Output(tooltip="The model with guidance; the input model stays as it is.")],
        )
        return with_search_aliases(schema, "low resolution guidance", "i-max", "imax", "keep composition", *ALIASES)

    @classmethod
    @with_checked_numbers
    def execute(cls, model: Any, guide: dict[str, Any], **settings: Any) -> io.NodeOutput:
        """``settings`` are the widgets; their names and defaults are those of :class:`GuideSettings`."""
        check_guide(guide["samples"])
        return io.NodeOutput(apply_guide(model, guide["samples"], GuideSettings(**settings)))
