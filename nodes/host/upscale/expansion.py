"""Stages as nodes of their own, cached one by one by the host: finished stages survive a later failure.

Source: node expansion, ``comfy_execution.graph_utils.GraphBuilder``, and ``ExecutionContext.list_index``, in ComfyUI
0.9.0 and later.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from comfy_execution.graph_utils import GraphBuilder, is_link
from comfy_execution.utils import get_executing_context

from ....clear_core.sdedit import OFF
from .progress import RunPlan, announce_plan
from .stage import StageSettings

STAGE_NODE = "CLEARUpscaleStage"
SOCKETS = ("model", "positive", "vae", "negative", "upscale_model", "mask")
LINKED = ("image", *SOCKETS, "later_model")

Link = list[Any]
"""[id of a node, index of its output]."""


def links_of(dynprompt: Any, node: str | None) -> dict[str, Link]:
    """The links into the sockets of a running node, by name; none outside a graph.

    The stages need the same links: the host's cache cannot compare values that are passed directly.
    """
    if dynprompt is None or node is None:
        return {}
    inputs = dynprompt.get_node(node)["inputs"]
    return {name: inputs[name] for name in LINKED if is_link(inputs.get(name))}


def item_of_running_call() -> int:
    """Index of the running call: the host calls a node once for each item of a list, and all calls share the links."""
    context = get_executing_context()
    return (context and context.list_index) or 0


def expand_stages(run: RunPlan, settings: StageSettings, links: dict[str, Link]) -> tuple[dict[str, Any], Link, Link]:
    """The stages of a run (one at least) as a graph.

    Returns:
        The graph, and links to the image and the latent of the last stage.
    """
    graph = GraphBuilder()
    announce_plan(graph.prefix, run)
    image, latent = links["image"], []
    sockets = {name: link for name, link in links.items() if name in SOCKETS}
    later = {"model": links["later_model"]} if "later_model" in links else {}
    for stage in run.stages:
        node = graph.node(
            STAGE_NODE,
            id=str(stage.number),
            image=image,
            item=item_of_running_call(),
            number=stage.number,
            height=stage.size[0],
            width=stage.size[1],
            denoise=stage.denoise,
            seed=stage.seed,
            guide=OFF if stage.guide is None else stage.guide.schedule,
            guide_strength=0.0 if stage.guide is None else stage.guide.strength,
            guide_level=1 if stage.guide is None else stage.guide.level,
            **asdict(settings),
            **(sockets if stage.number == 1 else {**sockets, **later}),
        )
        image, latent = node.out(0), node.out(1)
    return graph.finalize(), image, latent
