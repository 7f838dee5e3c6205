"""A graph built in Python and saved in the format of ComfyUI's front end (0.4)."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .kinds import CORE_VERSION, KINDS
from .models import Model
from .node import App, Node, Socket, saved_node

TITLE = 30
"""Height of a node's title bar, above the node's position."""
GAP_Y = 70
"""Between two nodes in a column, with the title bar; the front end's newer renderer draws nodes higher."""
GAP_X = 60
MARGIN = 30
"""Between a group's border and its nodes."""
TOP = 50
"""Height of a group's title."""
BETWEEN = 30
"""Between two groups."""

VIEW = (1510, 775)
VIEW_CORNER = (75, 105)
"""The part of the canvas that is always visible at first open, in px: size, and upper left corner beside the bars."""


@dataclass
class Group:
    """A titled rectangle around columns of nodes.

    Attributes:
        columns: From left to right, each from top to bottom.
        corner: Upper left corner in px.
        width: Width in px, at least ``least_width``.
    """

    title: str
    columns: Sequence[Sequence[Node]]
    corner: tuple[int, int] = (0, 0)
    width: int = 0

    @property
    def least_width(self) -> int:
        """Width of the columns in px."""
        return 2 * MARGIN - GAP_X + sum(max(node.size[0] for node in column) + GAP_X for column in self.columns)

    @property
    def height(self) -> int:
        """Height in px."""
        return (
            TOP + MARGIN - GAP_Y + TITLE + max(sum(node.size[1] + GAP_Y for node in column) for column in self.columns)
        )

    def put(self, x: int, y: int, width: int) -> None:
        """Moves the group and its nodes."""
        self.corner, self.width = (x, y), width
        left = x + MARGIN
        for column in self.columns:
            top = y + TOP + TITLE
            for node in column:
                node.corner = (left, top)
                top += node.size[1] + GAP_Y
            left += max(node.size[0] for node in column) + GAP_X

    @property
    def right(self) -> int:
        """Right edge in px."""
        return self.corner[0] + self.width

    @property
    def bottom(self) -> int:
        """Lower edge in px."""
        return self.corner[1] + self.height


@dataclass
class Graph:
    """A workflow.

    Attributes:
        name: File name without its extension; that of an app ends with ``.app``, as the front end names it.
        needs: First ComfyUI that runs it, if that is not the oldest one supported.
        app: What App mode shows, in which it opens; None for a graph.
    """

    name: str
    needs: str | None = None
    app: App | None = None
    nodes: list[Node] = field(default_factory=list[Node])
    groups: list[Group] = field(default_factory=list[Group])

    def add(
        self,
        type: str,
        /,
        *,
        title: str = "",
        models: Sequence[Model] = (),
        size: tuple[int, int] | None = None,
        **given: Any,
    ) -> Node:
        """Adds a node.

        Args:
            type: One of :data:`KINDS`.
            title: Title instead of the node's own name.
            models: Files that its widgets name.
            size: Size instead of the kind's own.
            **given: Outputs for input sockets, values for widgets; other widgets keep their defaults.
        """
        kind = KINDS[type]
        sources = {name: value for name, value in given.items() if name in kind.inputs}
        values = {name: value for name, value in given.items() if name not in kind.inputs}
        if unknown := values.keys() - kind.widgets.keys():
            raise ValueError(
                f"{type} has no {', '.join(sorted(unknown))}; expected some of "
                f"{', '.join([*kind.inputs, *kind.widgets])}."
            )
        node = Node(len(self.nodes) + 1, type, {**kind.widgets, **values}, sources, models, title, size or kind.size)
        self.nodes.append(node)
        return node

    def note(self, text: str, *, height: int = 580) -> Node:
        """Adds a note in Markdown."""
        node = self.add("MarkdownNote", title="Read me", size=(440, height))
        node.values[""] = text
        return node

    def column(self, *groups: tuple[str, Sequence[Node]] | tuple[str, Sequence[Node], Sequence[Node]]) -> None:
        """Puts groups, one below the other, to the right of the existing ones.

        Args:
            *groups: A title and the group's columns of nodes.
        """
        made = [Group(title, columns) for title, *columns in groups]
        x = max((group.right + BETWEEN for group in self.groups), default=0)
        width, y = max(group.least_width for group in made), 0
        for group in made:
            group.put(x, y, width)
            y = group.bottom + BETWEEN
        self.groups.extend(made)

    @property
    def links(self) -> Iterator[tuple[int, Socket, Node, str]]:
        """(number, from, to, name of the input), in the order of their target nodes."""
        found = (
            (source, node, name)
            for node in self.nodes
            for name in node.kind.inputs
            if (source := node.sources.get(name))
        )
        return ((number, *link) for number, link in enumerate(found, start=1))

    def saved(self) -> dict[str, Any]:
        """The graph as the front end saves it."""
        links = list(self.links)
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, self.name)),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(links),
            "nodes": [
                saved_node(node, order, links, self.needs or CORE_VERSION) for order, node in enumerate(self.in_order())
            ],
            "links": [
                [number, source.node.number, source.slot, node.number, list(node.kind.inputs).index(name), source.type]
                for number, source, node, name in links
            ],
            "groups": [
                {
                    "id": number,
                    "title": group.title,
                    "bounding": [*group.corner, group.width, group.height],
                    "color": "#3f789e",
                    "font_size": 24,
                    "flags": {},
                }
                for number, group in enumerate(self.groups, start=1)
            ],
            "config": {},
            "extra": {"ds": self.view(), "workflowRendererVersion": "LG", **(self.app.saved if self.app else {})},
            "version": 0.4,
        }

    def in_order(self) -> list[Node]:
        """The nodes in the order of their addition, but each after its sources."""
        done: list[Node] = []
        waiting = list(self.nodes)
        while waiting:
            ready = next(node for node in waiting if all(source.node in done for source in node.sources.values()))
            done.append(ready)
            waiting.remove(ready)
        return done

    def view(self) -> dict[str, Any]:
        """Zoom and offset of the canvas that show the whole graph."""
        width, height = max(group.right for group in self.groups), max(group.bottom for group in self.groups)
        scale = round(min(VIEW[0] / width, VIEW[1] / height, 1.0), 3)
        return {"scale": scale, "offset": [round(VIEW_CORNER[0] / scale), round(VIEW_CORNER[1] / scale)]}
