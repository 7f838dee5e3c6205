"""CLEAR attention: one function, several backends that give the same numbers."""

from .api import BACKENDS, clear_attention

__all__ = ["BACKENDS", "clear_attention"]
