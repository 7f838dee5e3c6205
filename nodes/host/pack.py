"""The pack's own name and version, and those of what runs beside it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from functools import lru_cache
from pathlib import Path

import torch
from comfyui_version import __version__ as host_version

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@lru_cache(maxsize=1)
def pack_id() -> dict[str, str]:
    """The registry's name of this pack and its version, from pyproject.toml, where alone they are written.

    A value is "unknown" where the pack was copied without that file.
    """
    try:
        text = PYPROJECT.read_text(encoding="utf-8")  # Python 3.10 has no tomllib
    except OSError:
        text = ""
    found = {key: re.search(rf'^{key} = "([^"]+)"$', text, re.MULTILINE) for key in ("name", "version")}
    return {key: match[1] if match else "unknown" for key, match in found.items()}


def versions() -> dict[str, str]:
    """Name to version of what takes part."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "installed" if importlib.util.find_spec("triton") else "not installed"
    return {"clear-flux": pack_id()["version"], "ComfyUI": host_version, "torch": torch.__version__, "triton": triton}
