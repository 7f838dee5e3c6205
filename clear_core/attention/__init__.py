"""CLEAR attention: one function, several backends that give the same results."""

from .api import PreparedAttention, clear_attention
from .bias import AttentionBias, ImageBias
from .choose import BACKENDS, check_backend, device_fault, explain_backend, unavailable_reason

__all__ = [
    "BACKENDS",
    "AttentionBias",
    "ImageBias",
    "PreparedAttention",
    "check_backend",
    "clear_attention",
    "device_fault",
    "explain_backend",
    "unavailable_reason",
]
