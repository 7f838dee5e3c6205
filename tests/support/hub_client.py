"""The real huggingface_hub client in a process of its own, and files for it to fetch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save

from clear_core.weights.naming import trained_names
from tests.support import PROJECT
from tests.support.hub import NAME

BY_HAND = f"to do it by hand, download {{}}/Huage001/CLEAR/resolve/main/{NAME} and save it as "

# The client writes blocks of this size; a broken connection loses less than one block.
BLOCK = 10 * 1024 * 1024


def clear_file(width: int, doubles: int, singles: int) -> bytes:
    generator = torch.Generator().manual_seed(width)
    shapes = {name: (width, width) if name.endswith("weight") else (width,) for name in trained_names(doubles, singles)}
    return save({name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()})


SMALL, SMALL_SHAPE = clear_file(32, 1, 2), (32, 1, 2)

BIG, BIG_SHAPE = clear_file(512, 4, 5), (512, 4, 5)

assert 1.3 * BLOCK < len(BIG) < 2 * BLOCK

# Reads one request per line and answers each with one line.
CLIENT = """
import json, os, sys
sys.path.insert(0, {root!r})
from clear_core.weights import CATALOGUE, Release, download, fetch
{setup}
def forget_client():
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        del sys.modules[name]
unchanged = dict(os.environ)
for line in sys.stdin:
    shape, folder, changes = json.loads(line)
    if changes:
        forget_client()
        os.environ.update(changes)
    CATALOGUE["clear_local_8"] = Release("clear_local_8", 8, 1, "", *shape)
    seen = []
    progress = lambda done, total: seen.append((done, total))
    try:
        answer = {{"path": str(fetch("clear_local_8", folder, progress))}}
    except Exception as error:  # The test asks for the kind; the next request finds this process alive.
        answer = {{"error": str(error), "kind": type(error).__name__}}
    print(json.dumps({{**answer, "seen": seen}}), flush=True)
    if changes:
        forget_client()
        os.environ.clear()
        os.environ.update(unchanged)
"""


class Client:
    """A process with huggingface_hub in it, pointed at an endpoint before it is imported; ``setup`` runs first."""

    def __init__(self, endpoint: str, home: Path, setup: str = "", **environment: str) -> None:
        clean = {
            key: value
            for key, value in os.environ.items()
            if not key.upper().startswith(("HF_", "HUGGING")) and not key.upper().endswith("_PROXY")
        }
        clean |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "*", **environment}
        self.endpoint = clean["HF_ENDPOINT"]
        self.log = home.with_suffix(".log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT.format(root=str(PROJECT), setup=setup)],
            env=clean,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()

    def ask(self, folder: Path, shape: tuple[int, int, int], changes: dict[str, str] | None = None) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([shape, str(folder), changes]) + "\n")
        self.process.stdin.flush()

    def fetch(self, folder: Path, shape: tuple[int, int, int] = SMALL_SHAPE, **changes: str) -> dict:
        """Result of a fetch: ``path``, or ``error``, ``kind`` and ``endpoint``, and ``seen``, the progress calls.

        With changes of the environment, a client that is imported anew answers this one request.
        """
        assert self.process.stdout is not None
        self.ask(folder, shape, changes)
        for line in self.process.stdout:
            if line.startswith("{"):
                return {**json.loads(line), "endpoint": changes.get("HF_ENDPOINT", self.endpoint)}
        raise AssertionError(self.logged())

    def logged(self) -> str:
        """What the process has written to its error stream, its log among it."""
        self.log.seek(0)
        return self.log.read()


def left(folder: Path) -> dict[str, int]:
    """Every file under ``folder`` with its size, part files by their ending alone; without the records of parts."""
    return {
        "part" if path.suffix == ".part" else str(path.relative_to(folder)): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".record"
    }


def refused(answer: dict, folder: Path, fragment: str, address: str | None = None) -> None:
    """Asserts one sentence with the reason and the way by hand at ``address``, and no file left behind."""
    assert answer.get("kind") == "FetchError", answer
    assert answer["error"].startswith(f"{NAME} was not fetched: ") and fragment in answer["error"], answer["error"]
    by_hand = BY_HAND.format(answer["endpoint"] if address is None else address)
    assert answer["error"].endswith(f"{by_hand}{folder / NAME}.") and answer["error"].isprintable(), answer["error"]
    assert left(folder) == {} and os.listdir(folder) == []
