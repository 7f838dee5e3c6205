"""CLEAR attention: one function, several backends that give the same numbers."""

from .api import clear_attention
from .backends import BACKENDS, explain_backend
from .bias import AttentionBias

__all__ = ["BACKENDS", "AttentionBias", "clear_attention", "explain_backend"]
