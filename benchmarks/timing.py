"""Shared by all measurements: interleaved rounds, peak memory, and the record with its environment."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import torch

from clear_core.progress import bar


def first_line(text: str | None) -> str:
    """First line of a docstring."""
    return (text or "").partition("\n")[0]


def interleaved(
    functions: dict[str, Callable[[], Any]],
    device: torch.device,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every function in every round; a round runs each once, so that a busy machine slows all alike.

    Args:
        clock: ``time.process_time`` excludes other programs and adds up the threads.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in bar(range(rounds), unit="round", leave=False):
        for name, function in functions.items():
            synchronize(device)
            start = clock()
            function()
            synchronize(device)
            seconds[name].append(clock() - start)
    return seconds


@contextmanager
def busy(processes: int) -> Generator[None]:
    """So many other processes that compute all the time, as other programs on the machine."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def summary(seconds: dict[str, list[float]], baseline: str) -> dict[str, dict[str, float]]:
    """Median milliseconds, and how many times faster than the baseline: the median over rounds of the ratio."""
    return {
        name: {
            "median_ms": round(median(own) * 1e3, 3),
            "speed_up": round(median(b / s for b, s in zip(seconds[baseline], own, strict=True)), 3),
        }
        for name, own in seconds.items()
    }


def peak_bytes(function: Callable[[], Any], device: torch.device) -> tuple[Any, int | None]:
    """The function's result, and its peak memory above the memory held before; None if unknown.

    On CUDA this is torch's allocated memory, on a Linux CPU the resident memory of the process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = function()
        return result, torch.cuda.max_memory_allocated(device) - before
    peak = Path("/proc/self/clear_refs")
    c_library = ctypes.CDLL(None) if peak.exists() else None
    if device.type != "cpu" or c_library is None or not hasattr(c_library, "malloc_trim"):
        return function(), None
    # Freed memory that the process keeps would be reused without being counted.
    c_library.malloc_trim(0)
    peak.write_text("5")
    before = _resident("VmRSS")
    result = function()
    return result, _resident("VmHWM") - before


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def synchronize(device: torch.device) -> None:
    """Waits for all work on a device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def failure(function: Callable[[], Any]) -> str | None:
    """The error of a function in one line; None without one. A backend that fails is a result."""
    try:
        function()
    except Exception as error:
        return error_line(error)
    return None


def error_line(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def environment(device: torch.device) -> dict[str, Any]:
    """The environment of a figure, besides the command's options."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "device": _device_name(device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "threads": torch.get_num_threads(),
        "revision": _revision(),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{device.type}: {names[0] if names else platform.processor() or platform.machine()}"


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # A machine without git.
        return "unknown"
    return found.stdout.strip() or "unknown"


def write_record(path: Path, device: torch.device, options: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """Writes figures, options, environment and command as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "command": " ".join(["python", "-m", *_launcher(), _module(), *sys.argv[1:]]),
        **environment(device),
        "options": options,
        "results": results,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def _module() -> str:
    """The module that was started; a package's file is called __main__."""
    file = Path(sys.argv[0])
    return f"benchmarks.{file.parent.name if file.stem == '__main__' else file.stem}"


def _launcher() -> list[str]:
    """What started this process as one of several."""
    if "RANK" not in os.environ:
        return []
    return ["torch.distributed.run", f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}", "-m"]
