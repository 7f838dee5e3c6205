"""The node that holds a run to what a smaller run predicted at the same noise levels."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..clear_core.guidance import Alignment, PredictionRecord
from ..clear_core.number_checks import check_percents
from .attention import ADVANCED
from .guide import ALIASES, CATEGORY, percent_inputs
from .guide_record import Record
from .host.guidance.alignment import apply_alignment
from .host.later_options import with_search_aliases
from .host.number_inputs import with_checked_numbers


class CLEARGuideAlign(io.ComfyNode):
    """MODEL, record and result to MODEL: HiFlow's direction and acceleration alignment."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        # The order of the widgets is frozen: saved workflows restore them by position.
        schema = io.Schema(
            node_id="CLEARGuideAlign",
            display_name="CLEAR Guide: align (HiFlow)",
            category=CATEGORY,
            description="Holds a large run to the predictions of a recorded small run at the same noise levels: in its "
            "coarse parts, and in how it changes from step to step.",
            inputs=[
                io.Model.Input("model", tooltip="The model of the large run; any image model."),
                Record.Input("record", tooltip="From CLEAR Guide: record."),
                io.Latent.Input(
                    "latent",
                    tooltip="The result of the recorded run, straight from its sampler: it says which run of the "
                    "record is meant.",
                ),
                io.Float.Input(
                    "direction",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Alignment of the coarse parts at the first step; it fades over the run. Published: 1 for "
                    "the first enlargement to 2K, 0.25 from 2K to 4K.",
                ),
                io.Float.Input(
                    "acceleration",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="Alignment of the change from step to step; it fades over the run. 0: off.",
                ),
                io.Float.Input(
                    "cutoff",
                    default=0.2,
                    min=0.01,
                    max=2.0,
                    step=0.01,
                    optional=True,
                    extra_dict=ADVANCED,
                    tooltip="What counts as coarse: the share of the finest frequency up to which direction works.",
                ),
                *percent_inputs("alignment"),
            ],
            outputs=[io.Model.Output(tooltip="The model with alignment; the input model stays as it is.")],
        )
        return with_search_aliases(schema, "hiflow", "flow alignment", *ALIASES)

    @classmethod
    @with_checked_numbers
    def execute(
        cls,
        model: Any,
        record: PredictionRecord,
        latent: dict[str, Any],
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        **alignment: Any,
    ) -> io.NodeOutput:
        """``alignment`` are the other widgets; their names and defaults are those of :class:`Alignment`."""
        check_percents(start_percent, end_percent)
        run = record.find(latent["samples"])
        return io.NodeOutput(apply_alignment(model, run, Alignment(**alignment), start_percent, end_percent))
