"""A node of an example and its outputs, as the front end saves them, and what an app shows of its nodes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .kinds import CORE, KINDS, Kind
from .models import Model

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@dataclass(frozen=True)
class Socket:
    """An output of a node."""

    node: Node
    slot: int

    @property
    def type(self) -> str:
        """Type of the output."""
        return self.node.kind.outputs[self.slot][1]


@dataclass(eq=False)
class Node:
    """A node of a graph; ``node["image"]`` is one of its outputs.

    Attributes:
        values: Widget values by name, in saved order.
        sources: Input name to the connected output.
        models: Files that its widgets name.
    """

    number: int
    type: str
    values: dict[str, Any]
    sources: dict[str, Socket]
    models: Sequence[Model] = ()
    title: str = ""
    size: tuple[int, int] = (0, 0)
    corner: tuple[int, int] = (0, 0)

    @property
    def kind(self) -> Kind:
        """Its kind."""
        return KINDS[self.type]

    def __getitem__(self, output: str) -> Socket:
        return Socket(self, [name for name, _ in self.kind.outputs].index(output))

    def properties(self, core: str) -> dict[str, Any]:
        """Its origin and models, as saved.

        Args:
            core: Version of ComfyUI.
        """
        if not self.kind.pack:
            return {}
        version = core if self.kind.pack == CORE else pack_version()
        saved: dict[str, Any] = {"Node name for S&R": self.type, "cnr_id": self.kind.pack, "ver": version}
        if self.models:
            saved["models"] = [model.saved for model in self.models]
        return saved


@dataclass(frozen=True)
class App:
    """A workflow as ComfyUI's App mode shows it: a form and the results, without the graph.

    Attributes:
        inputs: Nodes and names of their widgets to the words shown with them, from top to bottom.
        outputs: Nodes whose results are shown.
    """

    inputs: Mapping[tuple[Node, str], str]
    outputs: Sequence[Node]

    @property
    def saved(self) -> dict[str, Any]:
        """What the front end saves of it; one that is older than App mode shows every widget, or the graph."""
        return {
            "linearMode": True,
            "linearData": {
                "inputs": [
                    [str(node.number), widget, {"description": words}] for (node, widget), words in self.inputs.items()
                ],
                "outputs": [str(node.number) for node in self.outputs],
            },
        }


def saved_node(node: Node, order: int, links: Sequence[tuple[int, Socket, Node, str]], core: str) -> dict[str, Any]:
    """A node as it is saved; ``links`` are those of the whole graph, ``core`` is a version of ComfyUI."""
    into = {name: number for number, _, target, name in links if target is node}
    out = [
        [number for number, source, _, _ in links if source.node is node and source.slot == slot]
        for slot in range(len(node.kind.outputs))
    ]
    saved: dict[str, Any] = {
        "id": node.number,
        "type": node.type,
        "pos": list(node.corner),
        "size": list(node.size),
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [{"name": name, "type": kind, "link": into.get(name)} for name, kind in node.kind.inputs.items()],
        "outputs": [
            {"name": name, "type": kind, "links": numbers}
            for (name, kind), numbers in zip(node.kind.outputs, out, strict=True)
        ],
        "properties": node.properties(core),
        "widgets_values": list(node.values.values()),
    }
    if node.title:
        saved["title"] = node.title
    return saved


def pack_version() -> str:
    """The pack's version, from pyproject.toml."""
    lines = PYPROJECT.read_text(encoding="utf-8").splitlines()
    return next(
        line.split('"')[1]
        for line in itertools.dropwhile(lambda line: line != "[project]", lines)
        if line.startswith("version")
    )
