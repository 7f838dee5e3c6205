"""The pack's own name and version, and whether the host is one that it knows."""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from pathlib import Path

# Since 0.9.0 the stock loader reads FLUX's hidden size, heads and depth from the checkpoint.
OLDEST = (0, 9, 0)

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def host_is_recent_enough() -> bool:
    """True on ComfyUI 0.9.0 or later; otherwise says so in one sentence."""
    try:
        from comfyui_version import __version__ as version
    except ImportError:
        version = None
    if version and tuple(int(n) for n in re.findall(r"\d+", version)[:3]) >= OLDEST:
        return True
    logging.warning(
        "CLEAR for FLUX needs ComfyUI %s or later and this is %s: update ComfyUI; nothing was loaded.",
        ".".join(map(str, OLDEST)),
        version or "older than 0.3",
    )
    return False


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
