"""High-resolution sampling from an enlarged picture (SDEdit, arXiv 2108.01073; CLEAR's high-resolution recipe)."""

from .sampling import euler, noised, sdedit
from .schedule import sdedit_sigmas, static_shift

__all__ = ["euler", "noised", "sdedit", "sdedit_sigmas", "static_shift"]
