"""Makes the measurements of the plan that are still missing. Started by ``__main__``, again after each death."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import os
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch._dynamo

from ..timing import environment, error_line
from .bench import Bench, DeviceLostError, Measurement, is_alive, release
from .exits import DEVICE_LOST, DONE, ORPHANED, REFUSED
from .journal import AnotherRunError, Journal
from .plan import plan
from .report import write_report
from .scale import FULL, SMALL

PROJECT = Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--device")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    Thread(target=_end_with_parent, daemon=True).start()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    small = options.small or device.type == "cpu"
    if device.type == "cpu":
        # Tiny calls on a busy machine would wait for each other's threads.
        torch.set_num_threads(1)
    end = time.monotonic() + 60 * options.minutes
    try:
        journal = Journal(options.file)
        journal.begin(identity(device, small))
    except AnotherRunError as refusal:
        print(refusal, flush=True)
        return REFUSED
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    # Row-major attention is compiled for every size, as in the published code; this exceeds the usual limit.
    with torch.inference_mode(), torch._dynamo.config.patch({limit: 64}):
        code = measure(journal, device, small, end)
    if code == DONE:
        print(write_report(journal), flush=True)
    return code


def measure(journal: Journal, device: torch.device, small: bool, end: float) -> int:
    """Makes what is missing, as far as the time allows.

    Args:
        end: By ``time.monotonic``.

    Returns:
        One of :mod:`.exits`.
    """
    scale = SMALL if small else FULL
    listed = plan(scale)
    there = sum(one.key in journal.results for one in listed)
    print(f"{len(listed)} measurements on {journal.identity['device']}, {there} of them are there already", flush=True)
    journal.left_out = []
    for number, one in enumerate(listed, 1):
        if one.key in journal.results:
            continue
        # Small ones take less than a card's big ones, whatever the device.
        if time.monotonic() + (0 if small else one.expected) > end:
            journal.left_out.append(one.key)
            continue
        bench = Bench(
            scale, device, journal.results, journal.excluded, lambda run, key=one.key: journal.start(key, run)
        )
        begun = time.monotonic()
        try:
            result = _result(one, bench, journal)
        except DeviceLostError as error:
            print(f"[{number}/{len(listed)}] {one.key}: {error.run} made the device unusable: {error}", flush=True)
            journal.start(one.key, error.run)
            journal.died(f"it made the device unusable ({error})")
            return DEVICE_LOST
        took = time.monotonic() - begun
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        journal.finish(one.key, {"section": one.section, "seconds": round(took, 2), "finished": now, **result})
        shown = result.get("line") or result.get("failed")
        print(f"[{number}/{len(listed)}] {one.key}, {took:.1f} s: {shown}", flush=True)
        release(device)
    journal.write()
    return DONE


def _result(one: Measurement, bench: Bench, journal: Journal) -> dict[str, Any]:
    """What a measurement found; a failure is a result too.

    Raises:
        DeviceLostError: It left the device unusable.
    """
    journal.start(one.key)
    try:
        return one.run(bench)
    except DeviceLostError:
        raise
    except Exception as error:
        if not is_alive(bench.device):
            run = (journal.running or {}).get("run") or one.key
            raise DeviceLostError(run, error_line(error)) from error
        return {"failed": error_line(error)}


def identity(device: torch.device, small: bool) -> dict[str, Any]:
    """What has to be the same for figures to stand beside each other in one file."""
    about = environment(device)
    try:
        # Times of interpreted kernels are no times of kernels.
        interpreted = ", interpreted" if os.environ.get("TRITON_INTERPRET") == "1" else ""
        triton = importlib.import_module("triton").__version__ + interpreted
    except ImportError:
        triton = None
    return {
        "device": about["device"],
        "torch": about["torch"],
        "cuda": torch.version.cuda or torch.version.hip,
        "triton": triton,
        "python": about["python"],
        "system": about["system"],
        "revision": about["revision"],
        "state of the source files": sources(),
        "kind of run": "rehearsal at small sizes" if small else "full",
    }


def sources() -> str:
    """A digest of the code that is measured and that measures: a revision says nothing of changes since."""
    digest = hashlib.sha256()
    for folder in ("clear_core", "benchmarks"):
        for file in sorted((PROJECT / folder).rglob("*.py")):
            digest.update(file.relative_to(PROJECT).as_posix().encode())
            digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:12]


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone: a second start would measure beside it."""
    sys.stdin.buffer.read()
    os._exit(ORPHANED)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # Without waiting for pools of compilers.
    os._exit(code)
