"""The blueprint: a subgraph that ComfyUI offers among the nodes, with the main settings on the outside."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .graph import Graph
from .kinds import PACK
from .node import Node, pack_version
from .parts import ANY_PICTURE, WINDOWS, begin, windows

NAME = "Upscale image, FLUX + CLEAR"
DESCRIPTION = (
    "Makes a picture larger and redoes its detail with FLUX.1 and CLEAR's windowed attention: 2K to 8K, in "
    "stages, whole or in tiles that are blended at every step."
)
CATEGORY = "Image generation and editing/Upscale"

BORDER_IN, BORDER_OUT = -10, -20
"""Node ids of the two ends of a subgraph in the front end."""


@dataclass(frozen=True)
class Port:
    """A socket or widget of an inner node that shows on the outside.

    Attributes:
        name: Name of the inner input or output.
        type: Type of socket or widget.
        label: Label to show instead of the name.
    """

    node: Node
    name: str
    type: str
    label: str = ""

    @property
    def is_widget(self) -> bool:
        """Whether it is a widget, not a socket."""
        return self.name in self.node.values

    def described(self) -> dict[str, Any]:
        """Its entry on both sides of the border."""
        label = {"label": self.label} if self.label else {}
        return {"name": self.name, "type": self.type, **label}


def build() -> tuple[Graph, list[Port], list[Port]]:
    """The inside, and the inputs and outputs that show outside."""
    graph = Graph(NAME)
    parts = begin(graph, ANY_PICTURE, 3.5)
    clear = windows(graph, parts, "clear_local_16")
    upscale = graph.add(
        "CLEARUpscale",
        model=clear["MODEL"],
        vae=parts.vae["VAE"],
        positive=parts.guidance["CONDITIONING"],
        steps=10,
        denoise=0.35,
        stage_denoise="",
    )
    graph.column(("Models", parts.loaders), ("Your picture, in words", [parts.prompt, parts.guidance]))
    graph.column((WINDOWS, [clear]))
    graph.column(("Enlarge", [upscale]))
    inputs = [
        Port(upscale, "image", "IMAGE"),
        Port(upscale, "mask", "MASK"),
        Port(parts.prompt, "text", "STRING", "prompt"),
        Port(upscale, "upscale_by", "FLOAT"),
        Port(upscale, "denoise", "FLOAT"),
        Port(upscale, "steps", "INT"),
        Port(upscale, "seed", "INT"),
        Port(parts.guidance, "guidance", "FLOAT"),
        Port(parts.flux, "unet_name", "COMBO"),
        Port(clear, "weights_name", "COMBO"),
        Port(parts.clip, "clip_name1", "COMBO"),
        Port(parts.clip, "clip_name2", "COMBO"),
        Port(parts.vae, "vae_name", "COMBO"),
    ]
    return graph, inputs, [Port(upscale, "image", "IMAGE"), Port(upscale, "info", "STRING")]


def saved() -> dict[str, Any]:
    """The blueprint as the front end saves one: a workflow of a single node, and the definition of its inside."""
    graph, inputs, outputs = build()
    inside = graph.saved()
    definition: dict[str, Any] = {
        "id": inside["id"],
        "version": 1,
        "revision": 0,
        "name": NAME,
        "config": {},
        "widgets": [],
        "nodes": inside["nodes"],
        "links": [
            dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
            for link in inside["links"]
        ],
        "groups": inside["groups"],
        "extra": {"workflowRendererVersion": "LG"},
        "category": CATEGORY,
        "description": DESCRIPTION,
    }
    ends = connect(definition, inputs, outputs)
    right = max(group.right for group in graph.groups)
    definition |= {
        "inputNode": {"id": BORDER_IN, "bounding": [-280, 80, 160, 20 * len(inputs) + 40]},
        "outputNode": {"id": BORDER_OUT, "bounding": [right + 120, 80, 160, 20 * len(outputs) + 40]},
        "inputs": ends[0],
        "outputs": ends[1],
        "state": {
            "lastGroupId": len(graph.groups),
            "lastNodeId": len(graph.nodes),
            "lastLinkId": len(definition["links"]),
            "lastRerouteId": 0,
        },
    }
    outside = {
        "id": 1,
        "type": definition["id"],
        "title": NAME,
        "pos": [0, 0],
        "size": [400, 480],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [
            {**port.described(), **({"widget": {"name": port.name}} if port.is_widget else {}), "link": None}
            for port in inputs
        ],
        "outputs": [{**port.described(), "links": []} for port in outputs],
        "properties": {"cnr_id": PACK, "ver": pack_version()},
        "widgets_values": [],
    }
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{NAME}, outside")),
        "revision": 0,
        "last_node_id": 1,
        "last_link_id": 0,
        "nodes": [outside],
        "links": [],
        "groups": [],
        "config": {},
        "definitions": {"subgraphs": [definition]},
        "extra": {},
        "version": 0.4,
    }


def connect(
    definition: dict[str, Any], inputs: Sequence[Port], outputs: Sequence[Port]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Links the ports to the border, in place, and returns the border's two ends."""
    nodes = {node["id"]: node for node in definition["nodes"]}
    links: list[dict[str, Any]] = definition["links"]
    ends: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])

    def link(port: Port, origin: tuple[int, int], target: tuple[int, int], side: int) -> int:
        number = len(links) + 1
        links.append(
            {
                "id": number,
                "origin_id": origin[0],
                "origin_slot": origin[1],
                "target_id": target[0],
                "target_slot": target[1],
                "type": port.type,
            }
        )
        key = uuid.uuid5(uuid.NAMESPACE_URL, f"{NAME}, {side}, {port.name}")
        ends[side].append({"id": str(key), **port.described(), "linkIds": [number]})
        return number

    for slot, port in enumerate(inputs):
        sockets = nodes[port.node.number]["inputs"]
        if port.is_widget:
            sockets.append({"name": port.name, "type": port.type, "widget": {"name": port.name}, "link": None})
        at = next(i for i, socket in enumerate(sockets) if socket["name"] == port.name)
        sockets[at]["link"] = link(port, (BORDER_IN, slot), (port.node.number, at), 0)
    for slot, port in enumerate(outputs):
        at = port.node[port.name].slot
        nodes[port.node.number]["outputs"][at]["links"].append(
            link(port, (port.node.number, at), (BORDER_OUT, slot), 1)
        )
    return ends
