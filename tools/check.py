"""``dev.py check``: style, format, types, imports, lengths, generated files, what a release ships; no test is run.

Nothing is fetched once the environment is there: the wheel of pyright brings pyright and its Node along.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import archive, sync
from tools.environment import PROJECT, RefusedError, prepare_environment, prepare_tools
from tools.import_rules import WINGS, Project

MOST_LINES = 300  # of a file of code
MOST_SHOWN = 30  # offences of one step


@dataclass(frozen=True)
class Step:
    """One thing that is checked: its name, what finds offences (a line each), and how they are mended."""

    name: str
    offences: Callable[[], list[str]]
    remedy: str


def main(arguments: list[str]) -> int:
    unknown = [argument for argument in arguments if argument != "--without-torch"]
    if unknown:
        raise RefusedError(f"check knows no option {unknown[0]}; its only one is --without-torch.")
    python = prepare_tools() if arguments else prepare_environment()
    return run_steps(steps(PROJECT, python, with_torch=not arguments))


def run_steps(listed: list[Step]) -> int:
    """Runs all steps, says what each found, and returns 0 only if none found anything."""
    failed: list[str] = []
    for step in listed:
        started = time.monotonic()
        found = step.offences()
        spent = f"{time.monotonic() - started:.1f} s"
        if not found:
            print(f"{step.name}: ok ({spent})", flush=True)
            continue
        failed.append(step.name)
        print(f"{step.name}: {len(found)} found ({spent})")
        print("\n".join(f"  {line}" for line in found[:MOST_SHOWN]))
        if len(found) > MOST_SHOWN:
            print(f"  and {len(found) - MOST_SHOWN} more")
        print(f"  To mend: {step.remedy}", flush=True)
    print(f"check failed: {', '.join(failed)}" if failed else "check passed")
    return int(bool(failed))


def steps(project: Path, python: Path, with_torch: bool = True) -> list[Step]:
    """What is checked in a checkout, with the tools of this interpreter's environment; the quick ones first.

    Args:
        with_torch: Whether the environment has it and the other requirements; without them the tables in docs and the
            types are not checked. pyright takes unknown modules for errors in the code that uses them.
    """
    ruff = [str(python), "-m", "ruff"]
    pyright = [str(python), "-m", "pyright", "--pythonpath", str(python)]
    tables = Step(
        "calculated tables", lambda: stale_lines(project, sync.stale_tables(project, python)), "run python3 dev.py sync"
    )
    types = Step("pyright", lambda: type_errors(pyright, project), "change the code by hand")
    return [
        Step("imports", Project(project).offences, "tools/import_rules.py lists the rules and their reasons"),
        Step("generated files", lambda: stale_lines(project, sync.stale(project)), "run python3 dev.py sync"),
        *([tables] if with_torch else []),
        Step("release", lambda: archive.offences(project), "tools/archive.py and archive_rules.py list the rules"),
        Step("length", lambda: long_files(project), "one file, one idea: give the second one a file of its own"),
        Step(
            "ruff check",
            lambda: output_of([*ruff, "check", "--quiet", "--output-format", "concise", "."], project),
            "let ruff check --fix change what it can, and change the rest by hand",
        ),
        Step(
            "ruff format",
            lambda: output_of([*ruff, "format", "--quiet", "--check", "--output-format", "concise", "."], project),
            "run ruff format",
        ),
        *([types] if with_torch else []),
    ]


def stale_lines(project: Path, stale: dict[Path, str]) -> list[str]:
    """The first wrong line of each generated file that does not say what the code says."""
    lines: list[str] = []
    for path, text in stale.items():
        there = (sync.text_of(project / path) or "").splitlines()
        wanted = text.splitlines()
        number = next((n for n, (a, b) in enumerate(zip(there, wanted, strict=False)) if a != b), len(there)) + 1
        lines.append(f"{path.as_posix()}:{min(number, len(wanted))}: stale")
    return lines


def long_files(project: Path) -> list[str]:
    """Files of code with too many lines."""
    files = [file for wing in WINGS for file in sorted((project / wing).rglob("*.py"))]
    files += [*sorted((project / "web").rglob("*.js")), *project.glob("*.py")]
    counted = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    return [
        f"{file.relative_to(project).as_posix()}: {lines} lines; at most {MOST_LINES} are wanted"
        for file, lines in counted.items()
        if lines > MOST_LINES
    ]


def output_of(command: list[str], project: Path) -> list[str]:
    """The lines that a tool prints if it fails; none if it does not."""
    # PYRIGHT_PYTHON_IGNORE_WARNINGS: do not ask the network whether there is a newer one.
    variables = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=project, env=variables, text=True, encoding="utf-8", errors="replace", capture_output=True
    )
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return (lines or [f"{command[2]} ended with status {done.returncode}"]) if done.returncode else []


def type_errors(command: list[str], project: Path) -> list[str]:
    """pyright's errors, each on one line."""
    lines = output_of([*command, "--outputjson"], project)
    try:
        found = json.loads("\n".join(lines) or "{}").get("generalDiagnostics", [])
    except ValueError:
        return lines  # it could not even begin, and says why
    return [
        f"{place_of(one, project)}: {' '.join(one['message'].split())} ({one.get('rule', 'syntax')})"
        for one in found
        if one["severity"] == "error"
    ] or lines


def place_of(found: dict[str, Any], project: Path) -> str:
    """File and line of one of pyright's findings."""
    file = Path(found["file"])
    shown = file.relative_to(project).as_posix() if file.is_relative_to(project) else str(file)
    return f"{shown}:{found['range']['start']['line'] + 1}"
