"""Arguments of one attention call of the host."""

from __future__ import annotations

from typing import Any

Arguments = tuple[Any, ...]


def argument(name: str, position: int, args: Arguments, kwargs: dict[str, Any]) -> Any:
    """An argument of the host's ``optimized_attention``, given by position or by name."""
    return args[position] if len(args) > position else kwargs.get(name)


def block_of(kwargs: dict[str, Any]) -> tuple[str | None, int | None]:
    """The block of an attention call, in the host's numbering."""
    options = kwargs.get("transformer_options") or {}
    return options.get("block_type"), options.get("block_index")
