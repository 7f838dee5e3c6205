"""What is kept for the next start: small JSON files in the user's folder for files that can be made again."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from threading import Lock

from ..environment import variable

logger = logging.getLogger(__name__)

MOST_ENTRIES = 256
"""Of one file. Each device, version and dtype has one; past this many the oldest go."""

_LARGEST_FILE = 2**20

_writing = Lock()


def user_cache_folder() -> Path:
    """This system's folder for files that programs can make again."""
    if sys.platform == "win32":
        base = variable("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = variable("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "clear-flux"


def kept(file: Path) -> dict[str, object]:
    """All that a file holds, the oldest first; nothing if there is none or it is damaged."""
    try:
        if file.stat().st_size > _LARGEST_FILE:
            return {}
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def keep(file: Path, key: str, value: object) -> None:
    """Writes ``value`` under ``key``; a folder that cannot be written is only logged."""
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    with _writing:
        entries = kept(file)
        entries.pop(key, None)
        entries = dict([*entries.items(), (key, value)][-MOST_ENTRIES:])
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
            os.replace(unfinished, file)
        except OSError as error:
            logger.info("CLEAR attention: %s is not kept for the next start (%s).", file.name, error)
            with suppress(OSError):
                unfinished.unlink()
