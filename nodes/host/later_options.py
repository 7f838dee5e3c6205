"""Other words under which the host's node search finds a node."""

from __future__ import annotations

from comfy_api.latest import io


def with_search_aliases(schema: io.Schema, *aliases: str) -> io.Schema:
    """The schema with these aliases; a host whose schemas know none, as 0.9, finds the node by its names only."""
    if hasattr(schema, "search_aliases"):
        schema.search_aliases = list(aliases)
    return schema
