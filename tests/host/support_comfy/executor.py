"""The host's own executor in this process: node expansion, caching, errors and interrupts as in a real run."""

from __future__ import annotations

import copy
import itertools
from typing import Any

from .sampling import Graph

_numbers = itertools.count()


class Executor:
    """Runs workflows one after the other with one cache, and records the messages to the client.

    Args:
        cache: "CLASSIC" or "RAM_PRESSURE", the defaults of ComfyUI 0.9 and 0.33.

    Attributes:
        sent: (event, data) of the last run in order.
    """

    def __init__(self, cache: str = "CLASSIC") -> None:
        import execution
        from server import PromptServer

        self._server = PromptServer.instance
        self._executor = execution.PromptExecutor(
            self._server, cache_type=execution.CacheType[cache], cache_args={"lru": 0, "ram": 0.1, "ram_inactive": 0.1}
        )
        self.sent: list[tuple[Any, Any]] = []

    def run(self, graph: Graph, outputs: list[str]) -> bool:
        """Runs a workflow; True if it succeeded. The graph is not changed."""
        from latent_preview import set_preview_method

        self.sent = []
        original = self._server.send_sync
        self._server.send_sync = lambda event, data, sid=None: self.sent.append((event, data))
        try:
            self._executor.execute(
                copy.deepcopy(graph),
                f"prompt-{next(_numbers)}",
                {"client_id": "test", "preview_method": "latent2rgb"},
                outputs,
            )
        finally:
            self._server.send_sync = original
            set_preview_method()  # The method of a workflow outlives it; small models have no previews.
        return self._executor.success

    @property
    def executed(self) -> list[str]:
        """Ids of the nodes that were computed, not taken from the cache."""
        return [data["node"] for event, data in self.sent if event == "executing" and data["node"]]

    @property
    def told(self) -> str:
        """The error message sent to the client."""
        return "\n".join(data["exception_message"] for event, data in self.sent if event == "execution_error").strip()

    @property
    def interrupted(self) -> bool:
        return any(event == "execution_interrupted" for event, _ in self.sent)

    @property
    def progress(self) -> list[tuple[str, float, float]]:
        """(node, value, most) of every move of a progress bar."""
        return [(data["node"], data["value"], data["max"]) for event, data in self.sent if event == "progress"]

    @property
    def texts(self) -> list[tuple[str, str]]:
        """(node, text) of every line that was written on a node."""
        from server import BinaryEventTypes

        lines = []
        for event, data in self.sent:
            if event == BinaryEventTypes.TEXT:
                length = int.from_bytes(data[:4], "big")
                lines.append((data[4 : 4 + length].decode(), data[4 + length :].decode()))
        return lines

    @property
    def previews(self) -> int:
        """How many preview pictures were sent."""
        from server import BinaryEventTypes

        kinds = (
            BinaryEventTypes.UNENCODED_PREVIEW_IMAGE,
            getattr(BinaryEventTypes, "PREVIEW_IMAGE_WITH_METADATA", None),
        )
        return sum(event in kinds for event, _ in self.sent)
