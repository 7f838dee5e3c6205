"""Whether the host is recent enough for this pack."""

from __future__ import annotations

import logging
import re

# Since 0.9.0 the stock loader reads FLUX's hidden size, heads and depth from the checkpoint.
OLDEST = (0, 9, 0)


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
