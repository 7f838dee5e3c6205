"""CLEAR attention: one function, several backends that give the same numbers."""

from .api import clear_attention
from .bias import AttentionBias
from .choose import BACKENDS, explain_backend

__all__ = ["BACKENDS", "AttentionBias", "clear_attention", "explain_backend"]
