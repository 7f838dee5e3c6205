"""The measured order of block shapes, kept on disk: one file for all devices and versions of Triton."""

from __future__ import annotations

from pathlib import Path

from ...disk_cache import keep, kept
from .launch import BlockShape


def stored_order(file: Path, key: str, shapes: tuple[BlockShape, ...]) -> tuple[BlockShape, ...] | None:
    """The order measured before; None if nothing is stored under ``key`` or it does not name these shapes."""
    stored = kept(file).get(key)
    if not isinstance(stored, list) or not stored:
        return None
    by_name = {str(one): one for one in shapes}
    if not all(isinstance(name, str) and name in by_name for name in stored):
        return None
    return tuple(by_name[name] for name in stored)


def store_order(file: Path, key: str, order: tuple[BlockShape, ...]) -> None:
    """Writes an order under ``key``; a folder that cannot be written is only logged."""
    keep(file, key, [str(one) for one in order])
