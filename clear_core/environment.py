"""The environment's variables. Every other module asks here, so that a reviewer finds all such reads in one file."""

from __future__ import annotations

from collections.abc import Mapping
from os import environ


def variable(name: str, default: str = "") -> str:
    """The value of an environment variable; ``default`` if it is not set."""
    return environ.get(name, default)


def variables() -> Mapping[str, str]:
    """All variables that are set, by name, as they are at this moment."""
    return environ
