"""The measured order of block shapes, kept on disk: one JSON file for all devices and versions of Triton."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

from .launch import BlockShape

logger = logging.getLogger(__name__)


def user_cache_folder() -> Path:
    """This system's folder for files that programs can make again."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "clear-flux"


def stored_order(file: Path, key: str, shapes: tuple[BlockShape, ...]) -> tuple[BlockShape, ...] | None:
    """The order measured before; None if nothing is stored under ``key`` or it does not name these shapes."""
    stored = _read(file).get(key)
    if not isinstance(stored, list) or not stored:
        return None
    by_name = {str(one): one for one in shapes}
    if not all(isinstance(name, str) and name in by_name for name in stored):
        return None
    return tuple(by_name[name] for name in stored)


def _read(file: Path) -> dict[str, object]:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def store_order(file: Path, key: str, order: tuple[BlockShape, ...]) -> None:
    """Writes an order under ``key``; a folder that cannot be written is only logged."""
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    text = json.dumps({**_read(file), key: [str(one) for one in order]}, indent=1) + "\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, file)
    except OSError as error:
        logger.info("CLEAR attention: the choice is not kept for the next start (%s).", error)
        with suppress(OSError):
            unfinished.unlink()
