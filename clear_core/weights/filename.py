"""What a file's name says: its folders, its radius, and whether it is to be seen at all."""

from __future__ import annotations

import re

# A radius in a name must stand alone: "clear_local_8_16" or "clear_local_8b" may mean anything.
RADIUS = re.compile(r"(?<![a-z0-9])clear_local_([1-9][0-9]{0,3})(?:_down_[1-9][0-9]?)?(?![a-z0-9]|[._-][0-9])")


def name_parts(name: str) -> list[str]:
    """Folders and file of a name; both ``/`` and ``\\`` separate, because workflows are shared between systems."""
    return re.split(r"[\\/]", name)


def bare_name(name: str) -> str:
    """The name without its folders."""
    return name_parts(name)[-1]


def is_hidden(name: str) -> bool:
    """Whether a file is hidden or in a hidden folder, below the folder that ``name`` is relative to.

    Among them are the companions (``._x.safetensors``) that macOS puts beside each file on a foreign drive: they end
    like the file and hold none of its content.
    """
    return any(part.startswith(".") and part not in (".", "..") for part in name_parts(name))


def radius_from_name(name: str) -> int | None:
    """The radius in a file name of the form ``clear_local_<r>[_down_<d>]``; None if it is ambiguous.

    Folders and endings such as ``-bf16`` or `` (1)`` are ignored.
    """
    found = RADIUS.findall(bare_name(name).lower().removesuffix(".safetensors"))
    return int(found[0]) if len(found) == 1 else None
