"""CLEAR for FLUX: windowed attention for high-resolution pictures, without any host.

Importing this needs torch and safetensors; everything else is imported where it is used.
"""

from .attention import clear_attention
from .layout import SequenceLayout, token_grid
from .scale import attention_scale
from .spec import ClearSpec

__all__ = ["ClearSpec", "SequenceLayout", "attention_scale", "clear_attention", "token_grid"]
