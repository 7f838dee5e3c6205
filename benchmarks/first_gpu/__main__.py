"""The first GPU: everything that the project wants to know of a card, in one command of under nine minutes.

    python -m benchmarks.first_gpu --output benchmarks/records/NAME

Needs torch and, for the compiled kernels, Triton; nothing else. Writes NAME.json after every measurement, NAME.md and
NAME.svg at the end. Ended at any point and started again, it goes on where it was. On a CPU it rehearses at small
sizes. The measurements run in a process of their own: if one of them brings that process or the card down, what did it
is noted with its reason and left out, and the others go on.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from .exits import DEVICE_LOST
from .journal import AnotherRunError, Journal

MINUTES = 8.5
MOST_DEATHS = 8

SILENT_SECONDS = 180
"""A measurement that writes nothing for so long counts as hung."""

PROJECT = Path(__file__).parents[2]

# Codes with which Windows ends a process that crashed.
_WINDOWS_CRASH = 0xC0000000


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_gpu", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--output", type=Path, required=True, help="name of the record; .json, .md and .svg are added")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="nothing is begun that would end later")
    parser.add_argument("--device", help="a card if there is one, else the CPU")
    parser.add_argument("--small", action="store_true", help="rehearse at small sizes, as always on a CPU")
    options = parser.parse_args()
    output: Path = options.output
    file = output if output.suffix == ".json" else output.with_name(f"{output.name}.json")
    arguments = ["--file", str(file.absolute())]
    arguments += ["--device", options.device] if options.device else []
    arguments += ["--small"] if options.small else []
    try:
        return supervise(arguments, file.absolute(), time.monotonic() + 60 * options.minutes)
    except KeyboardInterrupt:
        print("Ended. Start it again with the same --output to go on.")
        return 130


def supervise(arguments: list[str], file: Path, end: float) -> int:
    """Runs the process that measures until it is done, again after each death.

    Args:
        end: By ``time.monotonic``.

    Returns:
        Its exit status, 1 if it died too often.
    """
    for _ in range(MOST_DEATHS):
        minutes = max(0.0, (end - time.monotonic()) / 60)
        code, hung = run_worker([*arguments, "--minutes", f"{minutes:.3f}"], file)
        reason = death(code, hung)
        if reason is None and code != DEVICE_LOST:
            return code
        if reason is not None:
            try:
                left_out = Journal(file).died(reason)
            except AnotherRunError as refusal:
                print(refusal)
                return 1
            print(f"The measuring process ended: {reason}; goes on without {left_out or 'anything'}.", flush=True)
    print(f"The measuring process ended {MOST_DEATHS} times; {file} holds what was found.")
    return 1


def quiet(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which no bars and no remark about numpy, which is not needed, stand between the lines."""
    warnings = [environment["PYTHONWARNINGS"]] if environment.get("PYTHONWARNINGS") else []
    warnings += ["ignore:Failed to initialize NumPy"]
    return {**environment, "TQDM_DISABLE": "1", "PYTHONWARNINGS": ",".join(warnings)}


def death(code: int, hung: bool) -> str | None:
    """Why a process died, None if it ended by itself."""
    if hung:
        return f"nothing was heard of it for {SILENT_SECONDS} s"
    if code < 0:
        names = {one.value: one.name for one in signal.Signals}
        return f"the process died of {names.get(-code, f'signal {-code}')}"
    return f"the process died of {code:#x}" if code >= _WINDOWS_CRASH else None


def run_worker(arguments: list[str], file: Path) -> tuple[int, bool]:
    """Exit status of one process that measures, and whether it was ended because it hung."""
    command = [sys.executable, "-m", f"{__package__}.worker", *arguments]
    # It reads the end of its input when this process is gone, however that came about.
    worker = subprocess.Popen(command, cwd=PROJECT, env=quiet(os.environ), stdin=subprocess.PIPE)
    begun = time.time()
    try:
        while True:
            try:
                return worker.wait(timeout=1), False
            except subprocess.TimeoutExpired:
                heard = max(begun, file.stat().st_mtime if file.exists() else 0)
                if time.time() - heard > SILENT_SECONDS:
                    worker.kill()
                    return worker.wait(), True
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait()


if __name__ == "__main__":
    sys.exit(main())
