"""The virtual environments that dev.py makes; the standard library alone."""

from __future__ import annotations

import hashlib
import os
import subprocess
import venv
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
ENVIRONMENT = PROJECT / ".venv"
REQUIREMENTS = (PROJECT / "requirements.txt", PROJECT / "requirements-dev.txt")

# Inside .venv, which git, the registry and the tools leave out already.
TOOLS_ENVIRONMENT = ENVIRONMENT / "check"
TOOLS_MARK = "# dev.py check:"


class RefusedError(Exception):
    """Something is missing that dev.py cannot make up for; the message says what and what to do."""


def say(message: str) -> None:
    print(f"dev: {message}", flush=True)


def interpreter_in(environment: Path) -> Path:
    """Where a virtual environment keeps its Python on this system."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def prepare_environment() -> Path:
    """Makes ``.venv`` fit the requirement files, if it does not yet, and returns its interpreter."""
    stated = b"".join(path.read_bytes() for path in REQUIREMENTS)
    listed = [option for path in REQUIREMENTS for option in ("-r", str(path))]
    return prepare(ENVIRONMENT, stated, listed, f"{' and '.join(path.name for path in REQUIREMENTS)} (takes minutes)")


def prepare_tools() -> Path:
    """The same for an environment with the tools of ``dev.py check`` and without torch."""
    pinned = tool_requirements(REQUIREMENTS[1].read_text(encoding="utf-8"))
    return prepare(TOOLS_ENVIRONMENT, "\n".join(pinned).encode(), pinned, ", ".join(pinned))


def tool_requirements(text: str) -> list[str]:
    """The requirements below the line of requirements-dev.txt that begins with ``# dev.py check:``."""
    _, mark, below = text.partition(TOOLS_MARK)
    pinned = [line.split("#")[0].strip() for line in below.splitlines()[1:]]
    if not mark or not any(pinned):
        raise RefusedError(f"requirements-dev.txt lists no tools below a line that begins with {TOOLS_MARK!r}.")
    return [line for line in pinned if line]


def prepare(environment: Path, stated: bytes, listed: list[str], described: str) -> Path:
    """Makes an environment if there is none, and installs into it what has changed since the last time."""
    python = interpreter_in(environment)
    stamp = environment / "requirements.sha256"
    wanted = hashlib.sha256(stated).hexdigest()
    if works(python) and stamp.is_file() and stamp.read_text() == wanted:
        return python
    name = environment.relative_to(PROJECT).as_posix()
    if not works(python):
        say(f"making the virtual environment {name}")
        try:
            venv.create(environment, clear=environment.exists(), with_pip=True)
        except subprocess.CalledProcessError:
            raise RefusedError(
                "Python could not make a virtual environment; on Debian and Ubuntu install the package "
                "python3-venv first."
            ) from None
    say(f"installing into {name}: {described}")
    if pip(python, "install", *listed):
        raise RefusedError("the requirements could not be installed; pip's message above says why.")
    stamp.write_text(wanted)
    return python


def works(python: Path) -> bool:
    """Whether there is an interpreter that starts (an environment whose Python was removed has one that does not)."""
    return python.exists() and subprocess.call([str(python), "-c", ""], stderr=subprocess.DEVNULL) == 0


def pip(python: Path, *arguments: str) -> int:
    return subprocess.call([str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments])
