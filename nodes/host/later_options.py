"""Options of a node's schema that later hosts know: an earlier one does without.

Source: ``search_aliases`` and ``has_intermediate_output`` of ``comfy_api.latest.io.Schema``, ComfyUI 0.9.0 to 0.33.
"""

from __future__ import annotations

from comfy_api.latest import io


def with_search_aliases(schema: io.Schema, *aliases: str) -> io.Schema:
    """The schema with these aliases; a host whose schemas know none, as 0.9, finds the node by its names only."""
    if hasattr(schema, "search_aliases"):
        schema.search_aliases = list(aliases)
    return schema


def with_kept_page(schema: io.Schema) -> io.Schema:
    """The schema of a node that shows a page: a run that does not need the node hands its last page on.

    Otherwise the page is gone after such a run and a reload of the browser's tab. A host whose schemas do not know
    this, as 0.9, drops it.
    """
    if hasattr(schema, "has_intermediate_output"):
        schema.has_intermediate_output = True
    return schema
