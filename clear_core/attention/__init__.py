"""CLEAR attention: one function, several backends that give the same numbers."""

from .api import clear_attention
from .backends import BACKENDS, explain_backend

__all__ = ["BACKENDS", "clear_attention", "explain_backend"]
