"""Distilled weights: which there are, what a file holds, and how its tensors are named."""

from .errors import ClearFileError
from .reader import ClearFile, read_clear_file

__all__ = ["ClearFile", "ClearFileError", "read_clear_file"]
