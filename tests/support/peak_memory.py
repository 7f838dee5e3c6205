"""The peak memory of a script in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from tests.support import PROJECT

UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in what the system counts resident memory by."""


def grown(warm: str, work: str, *arguments: Any) -> int:
    """Bytes by which ``work`` raises the process's peak of resident memory above that of ``warm``.

    Both are lines of Python in one namespace, which has ``sys`` with these arguments.
    """
    pytest.importorskip("resource")
    peak = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss"
    script = f"import resource, sys\n{warm}\nbefore = {peak}\n{work}\nprint({peak} - before)\n"
    answer = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=PROJECT, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    return int(answer.stdout) * UNIT
