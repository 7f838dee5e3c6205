"""Block shapes for the Triton kernel: which fit a device, and which of them is the fastest there.

The second is measured once for each device, version of Triton, dtype and head size, and kept on disk.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path

import torch

from ....layout import SequenceLayout
from ....spec import ClearSpec
from ...tiling.plan import tile_plan
from ..flex import padded_head_dim
from .launch import TileShape, interpreted, launch

logger = logging.getLogger(__name__)

# Compute capabilities with 163 KB of shared memory and more; 8.6, 8.9 and 12.x have 99 KB.
LARGE_SHARED_MEMORY = ((8, 0), (8, 7), (9, 0), (10, 0), (10, 3), (11, 0))

# One FLUX layer at 1K and radius 16: enough work for every multiprocessor, a few milliseconds.
_TRIAL = SequenceLayout(512, (64, 64)), ClearSpec(16), 24
_TRIAL_RUNS = 10


def candidate_shapes(
    device_type: str, capability: tuple[int, int] | None, dtype: torch.dtype, head_dim: int
) -> tuple[TileShape, ...]:
    """Shapes to try, the likeliest first; the last needs the least. Chosen by compiled code, see benchmarks/README.md.

    Args:
        device_type: "cuda" with a compute capability is NVIDIA, without one ROCm.
        capability: Compute capability of an NVIDIA device.
    """
    if dtype == torch.float32:
        # Without tensor cores, products are made in registers: larger blocks would spill.
        return TileShape(64, 32, 16, 1), TileShape(64, 16, 16, 1)
    if device_type == "cuda" and capability is not None:
        warps = 8 if padded_head_dim(head_dim) == 128 else 4
        if capability in LARGE_SHARED_MEMORY:
            return (
                TileShape(128, 64, warps, 3),
                TileShape(64, 64, 4, 2),
                TileShape(128, 32, warps, 3),
                TileShape(64, 32, 4, 2),
            )
        # Half a query tile by a whole key tile would leave room for one program of four warps.
        return TileShape(128, 64, warps, 2), TileShape(128, 32, warps, 2), TileShape(64, 32, 4, 2)
    if device_type == "cuda":
        # Compiled for gfx942 (MI300) none of these spills; for gfx1100 all do, the last one least.
        return TileShape(128, 64, 4, 1), TileShape(128, 32, 8, 1), TileShape(64, 64, 4, 1), TileShape(64, 32, 4, 1)
    return TileShape(128, 64, 16, 2), TileShape(64, 64, 8, 2), TileShape(64, 32, 8, 1)


def tile_shapes(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[TileShape, ...]:
    """Shapes in the order in which to try them on a device; measured there at the first call."""
    return _tile_shapes(device, dtype, padded_head_dim(head_dim))


@lru_cache(maxsize=32)
def _tile_shapes(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[TileShape, ...]:
    nvidia = device.type == "cuda" and torch.version.hip is None
    capability = torch.cuda.get_device_capability(device) if nvidia else None
    shapes = candidate_shapes(device.type, capability, dtype, head_dim)
    if device.type == "cpu" or interpreted():
        return shapes
    import triton

    name = getattr(torch, device.type).get_device_name(device)
    key = f"{name}, triton {triton.__version__}, {dtype}, head size {head_dim}"
    file = user_cache_folder() / "triton_tiles.json"
    return stored_order(file, key, shapes) or measured_order(
        file, key, shapes, partial(_seconds, device, dtype, head_dim)
    )


def measured_order(
    file: Path, key: str, shapes: tuple[TileShape, ...], seconds: Callable[[TileShape], float]
) -> tuple[TileShape, ...]:
    """The shapes that run, fastest first, written to ``file`` under ``key``.

    All of them in the order given, and nothing written, where none runs or memory is short: the call that follows
    says what is wrong.
    """
    logger.info("CLEAR attention: the Triton kernel's blocks are tried out for %s; once, under a minute.", key)
    times = {}
    for shape in shapes:
        try:
            times[shape] = seconds(shape)
        except torch.OutOfMemoryError:
            return shapes
        except Exception as error:
            # Compilers raise errors of many kinds; a shape that does not fit is one that is not chosen.
            logger.debug("CLEAR attention: %s is left out (%s).", shape, error)
    if not times:
        return shapes
    order = tuple(sorted(times, key=times.__getitem__))
    _store(file, key, order)
    return order


def _seconds(device: torch.device, dtype: torch.dtype, head_dim: int, shape: TileShape) -> float:
    """Time of one layer."""
    layout, spec, heads = _TRIAL
    synchronize = getattr(torch, device.type).synchronize
    # A generator of its own: the user's next picture keeps its noise.
    generator = torch.Generator(device).manual_seed(0)
    q, k, v, out = torch.randn(
        4, 1, heads, layout.length, head_dim, generator=generator, device=device, dtype=dtype
    ).unbind()
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    prefix = slice(0, layout.text)
    run = partial(
        launch,
        shape,
        q,
        k,
        v,
        k[:, :, prefix],
        v[:, :, prefix],
        out,
        lse,
        tile_plan(layout, spec, device),
        head_dim**-0.5,
    )
    best = float("inf")
    for _ in range(4):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(_TRIAL_RUNS):
            run()
        synchronize(device)
        best = min(best, (time.perf_counter() - start) / _TRIAL_RUNS)
    return best


# ---- on disk ----


def user_cache_folder() -> Path:
    """Where this system keeps what a user's programs can make again."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "clear-flux"


def stored_order(file: Path, key: str, shapes: tuple[TileShape, ...]) -> tuple[TileShape, ...] | None:
    """What was measured before; None where nothing is stored or it does not name these shapes."""
    stored = _read(file).get(key)
    if not isinstance(stored, list) or not stored:
        return None
    by_name = {str(one): one for one in shapes}
    order = tuple(by_name.get(name) if isinstance(name, str) else None for name in stored)
    return None if None in order else order


def _read(file: Path) -> dict[str, object]:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}


def _store(file: Path, key: str, order: tuple[TileShape, ...]) -> None:
    unfinished = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(
            json.dumps({**_read(file), key: [str(one) for one in order]}, indent=1) + "\n", encoding="utf-8"
        )
        os.replace(unfinished, file)
    except OSError as error:
        logger.info("CLEAR attention: the choice is not kept for the next start (%s).", error)
        with suppress(OSError):
            unfinished.unlink()
