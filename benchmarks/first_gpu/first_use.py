"""5. What the first call of a process takes, with an empty cache of compiled kernels and with a filled one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .bench import Bench, Measurement
from .scale import Scale

SECTION = "First use"
COMPILED = ("flex", "triton")
CACHES = ("cold", "warm")
CACHE_FOLDERS = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA")
"""Variables that name the caches: Inductor's, Triton's, and this project's own."""

SECONDS_AT_MOST = 120


def measurements(scale: Scale) -> list[Measurement]:
    return [Measurement(f"first use of {name}", SECTION, 50, partial(measure, name)) for name in COMPILED]


class ChildError(Exception):
    """The process that was to be timed failed."""


def measure(name: str, bench: Bench) -> dict[str, Any]:
    """``runs``: by "cold" and "warm", seconds of ``torch`` (its import), ``first`` and ``second`` call.

    A rehearsal leaves "cold" out.
    """
    runs: dict[str, dict[str, float]] = {}
    if reason := bench.refusal(name):
        return {"backend": name, "runs": runs, "skipped": {name: reason}, "line": reason}
    with tempfile.TemporaryDirectory(prefix="first-use-", ignore_cleanup_errors=True) as folder:
        for cache in CACHES if bench.scale.empty_caches else CACHES[1:]:
            found, reason = bench.attempt(name, partial(_child, name, Path(folder), bench))
            if found is None:
                return {"backend": name, "runs": runs, "skipped": {cache: reason}, "line": f"{cache}: {reason}"}
            runs[cache] = found
    line = ", ".join(f"{cache} {run['first']:.1f} s (then {run['second'] * 1e3:.3g} ms)" for cache, run in runs.items())
    return {"backend": name, "runs": runs, "skipped": {}, "line": line}


def _child(name: str, folder: Path, bench: Bench) -> dict[str, float]:
    scale = bench.scale
    layout = scale.layout("1K")
    case = {
        "backend": name,
        "device": str(bench.device),
        "dtype": str(scale.dtype).removeprefix("torch."),
        "shape": [1, scale.heads, layout.length, scale.head_dim],
        "grid": layout.grid,
        "radius": scale.radii[0],
        "threads": torch.get_num_threads(),
    }
    environment = dict(os.environ)
    if scale.empty_caches:
        environment |= {cache: str(folder / cache.lower()) for cache in CACHE_FOLDERS}
    done = subprocess.run(
        [sys.executable, "-m", f"{__package__}.first_call", json.dumps(case)],
        cwd=Path(__file__).parents[2],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS_AT_MOST,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise ChildError((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])
    return json.loads(lines[-1])
