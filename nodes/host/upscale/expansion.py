"""Stages as nodes of their own, which the host caches one by one: a finished stage survives what goes wrong later.

Source: node expansion, ``comfy_execution.graph_utils.GraphBuilder``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from comfy_execution.graph_utils import GraphBuilder, is_link

from ....clear_core.sdedit import Stage
from .progress import RunPlan, announce_plan
from .stage import StageSettings

STAGE_NODE = "CLEARUpscaleStage"
SOCKETS = ("model", "positive", "vae", "negative", "upscale_model", "mask")


def links_of(dynprompt: Any, node: str | None) -> dict[str, list] | None:
    """Where the sockets of a running node are connected to, or None outside a graph.

    The stages have to be given the same links: values of their own could not be told from others by the cache.
    """
    if dynprompt is None or node is None:
        return None
    inputs = dynprompt.get_node(node)["inputs"]
    return {name: inputs[name] for name in ("image", *SOCKETS) if is_link(inputs.get(name))}


def expand_stages(
    stages: tuple[Stage, ...], settings: StageSettings, links: dict[str, list], node: str
) -> tuple[dict[str, Any], list, list]:
    """The stages as a graph.

    Returns:
        The graph, and links to the picture and the latent of the last stage.
    """
    graph = GraphBuilder()
    announce_plan(graph.prefix, RunPlan(stages, settings.steps, node))
    image = links["image"]
    sockets = {name: link for name, link in links.items() if name in SOCKETS}
    for stage in stages:
        last = graph.node(
            STAGE_NODE,
            id=str(stage.number),
            image=image,
            number=stage.number,
            height=stage.size[0],
            width=stage.size[1],
            denoise=stage.denoise,
            seed=stage.seed,
            **asdict(settings),
            **sockets,
        )
        image = last.out(0)
    return graph.finalize(), last.out(0), last.out(1)
