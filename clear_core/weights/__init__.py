"""Distilled weights: the catalogue, downloading, reading, checking and writing them, and the names of their tensors.

``python -m clear_core.weights --help`` does the same from a terminal.
"""

from .catalogue import CATALOGUE, LICENCE, Release, find_release
from .download import fetch
from .errors import ClearFileError, FetchError
from .filename import bare_name, is_hidden, name_parts, radius_from_name
from .fingerprint import fingerprint
from .header import ClearHeader
from .reader import ClearFile, read_clear_file
from .trained_set import TRAINED_SETS, TrainedSet
from .writer import save_clear_file, save_clear_lora

__all__ = [
    "CATALOGUE",
    "LICENCE",
    "TRAINED_SETS",
    "ClearFile",
    "ClearFileError",
    "ClearHeader",
    "FetchError",
    "Release",
    "TrainedSet",
    "bare_name",
    "fetch",
    "find_release",
    "fingerprint",
    "is_hidden",
    "name_parts",
    "radius_from_name",
    "read_clear_file",
    "save_clear_file",
    "save_clear_lora",
]
