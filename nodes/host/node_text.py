"""A line of text on a node, which the next one replaces.

Source: ``PromptServer.send_progress_text``, ``comfy_execution.utils.get_executing_context`` and
``comfy_execution.progress.get_progress_state``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from server import PromptServer  # pyright: ignore[reportAttributeAccessIssue]  # the host's module, not ours

from ...clear_core.attention.first_use import listen


def write_on_node(text: str, node: str | None) -> None:
    """Write a line on a node; nothing where there is no server or no node."""
    server = getattr(PromptServer, "instance", None)
    if server is not None and node is not None:
        server.send_progress_text(text, node)


def running_node() -> str | None:
    """Id of the node of the user's graph that executes in this thread; of the node that stands for an expanded one."""
    context = get_executing_context()
    return None if context is None else get_progress_state().dynprompt.get_display_node_id(context.node_id)


def show_first_use() -> None:
    """From now on, show on the executing node what attention compiles and tests before its first result."""
    listen(lambda sentence: write_on_node(sentence, running_node()))
