"""The node that records what a model predicts, for CLEAR Guide: align."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .guide import ALIASES, CATEGORY
from .host.guidance.recorder import apply_recorder
from .host.later_options import with_search_aliases

Record = io.Custom("CLEAR_RECORD")


class CLEARGuideRecord(io.ComfyNode):
    """MODEL to MODEL and its record."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        schema = io.Schema(
            node_id="CLEARGuideRecord",
            display_name="CLEAR Guide: record (HiFlow)",
            category=CATEGORY,
            description="Records what the model predicts at every step of a low-resolution run, so that CLEAR Guide: "
            "align can hold a larger run to it. Changes nothing in the run itself.",
            inputs=[io.Model.Input("model", tooltip="The model of the low-resolution run; any image model.")],
            outputs=[
                io.Model.Output(tooltip="The same model, recorded: connect it to the low-resolution sampler."),
                Record.Output(
                    "record", tooltip="The predictions, in main memory, 1 GiB at most; the oldest run goes first."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )
        return with_search_aliases(schema, "hiflow", "record predictions", "flow alignment", *ALIASES)

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        return io.NodeOutput(*apply_recorder(model, cls.hidden.unique_id))
