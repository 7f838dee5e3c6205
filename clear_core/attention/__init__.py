"""CLEAR attention: one function, several backends that give the same results."""

from .api import clear_attention
from .bias import AttentionBias, ImageBias
from .choose import BACKENDS, check_backend, device_fault, explain_backend, unavailable_reason

__all__ = [
    "BACKENDS",
    "AttentionBias",
    "ImageBias",
    "check_backend",
    "clear_attention",
    "device_fault",
    "explain_backend",
    "unavailable_reason",
]
