"""``dev.py archive``: the file that a release ships, and what must not be in it. ``dev.py check`` asks the same.

Source: ``zip_files`` in comfy_cli/file_utils.py of comfy-cli 1.23, which ``comfy node pack`` and ``publish`` call: the
files that git tracks, as they lie in the checkout, without those that .comfyignore names. CI compares both archives.
"""

from __future__ import annotations

import io
import re
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from tools import release
from tools.archive_rules import LEFT, LONGEST_LINE, Finding, Left, findings, hard_to_read
from tools.environment import PROJECT, RefusedError, say

OUTPUT = Path("out/clear-flux.zip")

# What ships, by its first folder. A new one is a decision: a user needs it, or .comfyignore names it.
SERVED = {
    *("__init__.py", "pyproject.toml", "requirements.txt", "README.md", "CHANGELOG.md", "LICENSE"),
    *("clear_core", "nodes", "web", "locales", "docs", "example_workflows", "subgraphs"),
}

# What a scanner cannot read is taken for a danger.
READABLE = {".py", ".js", ".json", ".md", ".txt", ".toml", ""}
PICTURES = {".jpg", ".png", ".webp"}

TESTS = re.compile(r"(^|/)(tests?|conftest\.py|test_[^/]*|[^/]*_test\.py|[^/]*\.(test|spec)\.js)(/|$)")
NO_TESTS = {"clear_core/attention/self_test.py"}  # compares a kernel with dense attention before its first use

# A template's picture has 30 KiB. Larger ones belong into docs/pictures, which the README shows from the repository.
LARGEST_PICTURE = 64 * 2**10

# The Manager downloads it at every installation and update, as browsers download the pictures. Today it is 1.1 MiB.
LARGEST_ARCHIVE = 2 * 2**20


def main(arguments: list[str]) -> int:
    """Writes the archive; with ``--release`` only if a release may ship it."""
    options = set(arguments)
    if arguments[:1] == ["--is-new"]:
        say_whether_new(arguments[1:])
        return 0
    if arguments[:1] == ["--same-as"] and len(arguments) == 2:
        return same_as(Path(arguments[1]))
    if options - {"--release"}:
        raise RefusedError(
            f"archive does not know {' '.join(arguments)}; it takes --release, --same-as FILE or --is-new COMMIT."
        )
    found = offences(PROJECT) + (release.left_to_fill_in(PROJECT) if options else [])
    if found:
        raise RefusedError("\n  ".join([f"{len(found)} found; nothing was written.", *found]))
    names = shipped(PROJECT)
    packed = archive(PROJECT, names)
    (PROJECT / OUTPUT).parent.mkdir(exist_ok=True)
    (PROJECT / OUTPUT).write_bytes(packed)
    say(f"wrote {OUTPUT.as_posix()}: {len(names)} files, {len(packed) / 2**20:.2f} MiB")
    return 0


def say_whether_new(arguments: list[str]) -> None:
    """Prints ``is_new=true`` or ``is_new=false``, which a workflow takes as its output."""
    if len(arguments) > 1:
        raise RefusedError(f"--is-new takes one commit or none; {' '.join(arguments)} was given.")
    print(f"is_new={str(release.is_new(PROJECT, arguments[0] if arguments else '')).lower()}")


def same_as(other: Path) -> int:
    """Compares the names in the archive with another's, such as the one of ``comfy node pack``.

    Raises:
        RefusedError: They differ, or the other cannot be read.
    """
    try:
        with zipfile.ZipFile(other) as file:
            theirs = set(file.namelist())
    except (OSError, zipfile.BadZipFile) as error:
        raise RefusedError(f"{other} cannot be read as an archive: {error}.") from None
    ours = set(shipped(PROJECT))
    if ours != theirs:
        lines = [f"only here: {name}" for name in sorted(ours - theirs)]
        lines += [f"only in {other.name}: {name}" for name in sorted(theirs - ours)]
        raise RefusedError("\n  ".join(["the archives differ; correct tools/archive.py.", *lines]))
    say(f"{len(ours)} files, the same as in {other.name}")
    return 0


def shipped(project: Path) -> list[str]:
    """The files of a checkout that a release ships.

    Raises:
        RefusedError: It is no checkout of git, or there is no git.
    """

    def listed(*which: str) -> set[str]:
        try:
            done = subprocess.run(
                ["git", "ls-files", "-z", *which], cwd=project, capture_output=True, encoding="utf-8", check=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise RefusedError(f"git does not list the files of {project}: {error}.") from None
        return {name for name in done.stdout.split("\0") if name and (project / name).exists()}

    return sorted(listed() - listed("--cached", "--ignored", "--exclude-from=.comfyignore"))


def archive(project: Path, names: list[str]) -> bytes:
    """The zip file of these files; the same files give the same bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name in names:
            content = (project / name).read_bytes()
            file.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def offences(project: Path) -> list[str]:
    """One line for everything that must not be in the archive of a checkout."""
    names = shipped(project)
    rules: tuple[Callable[[Path, list[str]], Iterator[str]], ...] = (differing, unwanted, oversized, flagged)
    return [line for rule in rules for line in rule(project, names)]


def differing(project: Path, names: list[str]) -> Iterator[str]:
    """Where comfy-cli would ship other files than ``shipped`` tells."""
    ignore = project / ".comfyignore"
    for number, line in enumerate(ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else (), 1):
        if line.startswith("!"):
            yield f".comfyignore:{number}: {line}: comfy-cli and git read exceptions differently; name what is left out"
    includes = re.search(r"(?m)^includes = \[(.*)", (project / "pyproject.toml").read_text(encoding="utf-8"))
    if includes and not includes.group(1).startswith("]"):
        yield "pyproject.toml: includes ships files past git and .comfyignore, unseen by this check; leave it empty"
    for name in names:
        if not name.isascii():
            yield f"{name}: comfy-cli leaves out names with letters beyond ASCII, without a word; rename it"


def unwanted(project: Path, names: list[str]) -> Iterator[str]:
    """Files that nobody needs who uses the nodes."""
    for name in names:
        if name.split("/")[0] not in SERVED:
            yield f"{name}: of the workshop; name it in .comfyignore, or in SERVED in tools/archive.py if users need it"
        elif TESTS.search(name) and name not in NO_TESTS:
            yield f"{name}: a test; move it to tests, as scanners flag what tests do"
        elif PurePosixPath(name).suffix not in READABLE | PICTURES:
            yield f"{name}: of a kind that scanners cannot read; ship text and pictures ({', '.join(sorted(PICTURES))})"


def oversized(project: Path, names: list[str]) -> Iterator[str]:
    """Pictures above LARGEST_PICTURE, and an archive above LARGEST_ARCHIVE."""
    for name in names:
        size = (project / name).stat().st_size
        if PurePosixPath(name).suffix in PICTURES and size > LARGEST_PICTURE:
            yield f"{name}: {size} bytes; pictures that ship have at most {LARGEST_PICTURE}, others go to docs/pictures"
    if (size := len(archive(project, names))) > LARGEST_ARCHIVE:
        yield f"the archive has {size} bytes; at most {LARGEST_ARCHIVE} are wanted, as each update downloads it"


def flagged(project: Path, names: list[str], left: Sequence[Left] = LEFT) -> Iterator[str]:
    """What scanners flag and LEFT does not keep, and entries of LEFT that keep nothing."""
    kept = {(one.file, one.kind): False for one in left}
    for name in names:
        if PurePosixPath(name).suffix not in READABLE:
            continue
        text = (project / name).read_text(encoding="utf-8")
        for line in hard_to_read(name, text):
            yield f"{name}:{line}: more than {LONGEST_LINE} letters, which scanners take for minified code"
        for found in findings(name, text):
            if (name, found.kind.name) in kept:
                kept[name, found.kind.name] = True
            else:
                yield told(found)
    for (file, kind), met in kept.items():
        if not met:
            yield f'tools/archive_rules.py: {file} no longer "{kind}"; take the entry out of LEFT'


def told(found: Finding) -> str:
    return (
        f"{found.file}:{found.line}: {found.what}: {found.kind.name} ({found.kind.why}); do without it, or enter it in "
        f"LEFT in tools/archive_rules.py with the reason"
    )
