"""``dev.py test``: the core, the pack inside every ComfyUI that is found, and ComfyUI's front end in a browser.

``COMFYUI_FRONT_END`` names a built front end to test instead of each ComfyUI's own: the folder ``static`` of the host's
package for it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tools.environment import ENVIRONMENT, PROJECT, RefusedError, interpreter_in, pip, say, works

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")

# pytest's exit status for "nothing was collected": all right where the user's own options left nothing over.
NOTHING_COLLECTED = 5

# Each holds torch, and a ComfyUI in the host's and the front end's tests: about 2 GB.
MOST_PROCESSES = 4

# Appends the folder named first, so that the host's own packages come before what pytest brings along.
RUN_PYTEST = "import sys; sys.path.append(sys.argv.pop(1)); import pytest; sys.exit(pytest.main(sys.argv[1:]))"


@dataclass
class Result:
    """What one suite did: its name, pytest's exit status and counts."""

    suite: str
    status: int
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.suite}: {self.passed} passed, {self.failed} failed, {self.skipped} skipped ({self.seconds:.0f} s)"
        )


def run_suites(python: Path, arguments: list[str]) -> int:
    """Runs the suites and prints one line for each, what ran on which ComfyUI, and the sum."""
    options = ["--slow" if argument == "--all" else argument for argument in arguments]
    hosts = find_hosts()
    find_front_end()  # a wrong folder is refused before anything runs
    results: list[Result] = []
    on_hosts: list[str] = []
    skipped: list[str] = []
    with tempfile.TemporaryDirectory() as reports:
        if wanted := select("core", options):
            say("testing the core")
            command = [str(python), "-m", "pytest", *side_by_side(options)]
            results.append(run_suite("core", command, wanted, PROJECT, Path(reports), **threads_each(options)))
        if wanted := select("host", options):
            if not hosts:
                skipped.append("host tests are skipped: COMFYUI_PATH is not set and there is no ComfyUI at ~/ComfyUI")
            for checkout in hosts:
                version = host_version(checkout)
                say(f"testing in ComfyUI {version} at {checkout}")
                result = run_suite(
                    f"host, ComfyUI {version}",
                    [*host_pytest(python, checkout), *side_by_side(options)],
                    wanted,
                    checkout,
                    Path(reports),
                    COMFYUI_PATH=str(checkout),
                    **threads_each(options),
                )
                results.append(result)
                on_hosts.append(f"{result.passed + result.failed} {'' if on_hosts else 'ran '}on ComfyUI {version}")
        if wanted := select("frontend", options):
            browser = find_browser()
            if hosts and browser:
                say(f"testing the front end of {len(hosts)} ComfyUI in {browser}")
                results.append(
                    run_suite(
                        "frontend",
                        [str(python), "-m", "pytest", *side_by_side(options)],
                        wanted,
                        PROJECT,
                        Path(reports),
                        COMFYUI_PATH=os.pathsep.join(map(str, hosts)),
                        **threads_each(options),
                    )
                )
            elif hosts:
                skipped.append("frontend tests are skipped: neither chromium nor google-chrome is on the PATH")
            else:
                skipped.append("frontend tests are skipped: they need a ComfyUI, and none was found")
    print()
    for line in [*map(str, results), *skipped]:
        print(line)
    print(f"host tests: {', '.join(on_hosts) or 'none ran'}")
    print(
        f"{sum(r.passed for r in results)} passed, {sum(r.failed for r in results)} failed, "
        f"{sum(r.skipped for r in results)} skipped"
    )
    allowed = {0, NOTHING_COLLECTED} if arguments else {0}
    return int(not results or any(result.status not in allowed for result in results))


def select(suite: str, options: list[str]) -> list[str]:
    """pytest's arguments for one suite; empty if the options name tests and none of them is in it.

    Options that name files or folders choose the suites these belong to; all others go to every suite.
    """
    folder = PROJECT / "tests" / suite
    paths = {
        option: Path(option.split("::")[0]).resolve()
        for option in options
        if not option.startswith("-") and Path(option.split("::")[0]).exists()
    }
    if not paths:
        return [str(folder), *options]
    inside = {option for option, path in paths.items() if path == folder or folder in path.parents}
    kept = [
        str(Path(option.split("::")[0]).resolve()) + option[len(option.split("::")[0]) :]
        if option in inside
        else option
        for option in options
        if option in inside or option not in paths
    ]
    return kept if inside else []


def side_by_side(options: list[str]) -> list[str]:
    """pytest's options to run files side by side; none if the options name less than a suite, or a debugger."""
    alone = {"-n", "--numprocesses", "--pdb", "--trace", "-s", "--capture"}
    paths = [Path(option.split("::")[0]).resolve() for option in options if not option.startswith("-")]
    named = any(path.exists() and path.parent != PROJECT / "tests" for path in paths)
    processes = min(MOST_PROCESSES, os.cpu_count() or 1)
    if named or processes < 2 or alone & {option.split("=")[0] for option in options}:
        return []
    # In the suite's own order: the files that load other packs, which change their process, are the last.
    return ["-n", str(processes), "--dist", "loadfile", "--no-loadscope-reorder"]


def threads_each(options: list[str]) -> dict[str, str]:
    """The environment of processes that run side by side: torch's threads would wait for each other, many times over.

    Somebody's own ``OMP_NUM_THREADS`` stays.
    """
    beside = side_by_side(options)
    if not beside or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // int(beside[1])))}


def run_suite(
    name: str, command: list[str], arguments: list[str], folder: Path, reports: Path, **variables: str
) -> Result:
    """Runs pytest once, its output shown as it comes, and counts from the report that it writes."""
    report = reports / f"{re.sub(r'[^0-9a-z.]', '-', name.lower())}.xml"
    started = time.monotonic()
    status = subprocess.call(
        [*command, f"--rootdir={PROJECT}", "-c", str(PROJECT / "pyproject.toml"), f"--junitxml={report}", *arguments],
        cwd=folder,
        env={**os.environ, **variables},
    )
    result = Result(name, status, seconds=time.monotonic() - started)
    if report.is_file():
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
            result.failed += counts["failures"] + counts["errors"]
            result.skipped += counts["skipped"]
            result.passed += counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    if status not in (0, NOTHING_COLLECTED) and not result.failed:
        result.failed = 1  # pytest itself ended before it could count: a crash, or a conftest that fails
    return result


def find_hosts() -> list[Path]:
    """ComfyUI checkouts to test in.

    Raises:
        RefusedError: COMFYUI_PATH names a folder that is not a ComfyUI.
    """
    named = [part for part in os.environ.get("COMFYUI_PATH", "").split(os.pathsep) if part]
    if not named:
        home = Path.home() / "ComfyUI"
        return [home] if (home / "main.py").is_file() else []
    checkouts = [Path(part).expanduser().resolve() for part in named]
    for checkout in checkouts:
        if not (checkout / "main.py").is_file():
            raise RefusedError(f"COMFYUI_PATH names {checkout}, where there is no main.py; name ComfyUI's own folder.")
    return checkouts


def host_version(checkout: Path) -> str:
    file = checkout / "comfyui_version.py"
    found = re.search(r"""__version__\s*=\s*["']([^"']+)""", file.read_text()) if file.is_file() else None
    return found.group(1) if found else "of unknown version"


def host_interpreter(checkout: Path) -> Path:
    """The Python that has a ComfyUI's requirements: of the environment beside it, else the one running this."""
    beside = [interpreter_in(checkout / name) for name in (".venv", "venv")]
    beside.append(checkout.parent / "python_embeded" / "python.exe")  # the portable build for Windows
    return next((path for path in beside if works(path)), Path(sys.executable))


def host_pytest(python: Path, checkout: Path) -> list[str]:
    """The command that runs pytest with a ComfyUI's own interpreter, in which nothing is installed for it."""
    host = host_interpreter(checkout)
    version = subprocess.check_output(
        [str(host), "-c", "import sys; print('{}.{}'.format(*sys.version_info))"], text=True
    ).strip()
    folder = ENVIRONMENT / f"host-pytest-xdist-{version}"
    if not folder.is_dir():
        say(f"fetching pytest for Python {version} into .venv/{folder.name}")
        unfinished = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)
        wanted = ("install", "--target", str(unfinished), "pytest>=8.2", "pytest-xdist>=3.7")
        # The host's own pip knows what its Python needs; where it has none, ours runs under its interpreter.
        if pip(host, *wanted) and subprocess.call([str(python), "-m", "pip", "--python", str(host), "-q", *wanted]):
            raise RefusedError(f"pytest could not be fetched for {host}; pip's message above says why.")
        unfinished.rename(folder)
    return [str(host), "-c", RUN_PYTEST, str(folder)]


def find_front_end() -> Path | None:
    """The built front end to test instead of each ComfyUI's own, from ``COMFYUI_FRONT_END``.

    Raises:
        RefusedError: The variable names a folder that holds no built front end.
    """
    named = os.environ.get("COMFYUI_FRONT_END", "")
    if not named:
        return None
    folder = Path(named).expanduser().resolve()
    # As pip unpacks the host's package, the built files are one folder below.
    folder = next((each for each in (folder, folder / "static") if (each / "index.html").is_file()), folder)
    if not (folder / "index.html").is_file():
        raise RefusedError(
            f"COMFYUI_FRONT_END names {named}, where there is no index.html; name the folder static of an unpacked "
            "comfyui-frontend-package."
        )
    return folder


def front_end_arguments() -> list[str]:
    """What makes a ComfyUI's server show the front end of ``COMFYUI_FRONT_END``; nothing if it keeps its own."""
    folder = find_front_end()
    return ["--front-end-root", str(folder)] if folder else []


def front_end_version(checkout: Path) -> str:
    """The version of the front end that is tested on a ComfyUI, as pip noted it beside the package."""
    folder = find_front_end()
    if folder is None:
        found = subprocess.run(
            [
                str(host_interpreter(checkout)),
                "-c",
                "from importlib.metadata import version; print(version('comfyui_frontend_package'))",
            ],
            capture_output=True,
            text=True,
        )
        return found.stdout.strip() or "of unknown version"
    notes = sorted(folder.parents[1].glob("comfyui_frontend_package-*.dist-info"))
    return notes[-1].name.removesuffix(".dist-info").split("-", 1)[1] if notes else f"of unknown version at {folder}"


def find_browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)
