"""What a release still needs, and whether a version is new: the publishing workflow asks. Standard library alone."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

EXPECTED = {
    "Repository": "the repository's address, https://github.com/NAME/REPOSITORY",
    "Issues": "the same with /issues",
    "PublisherId": "the publisher's name at the Comfy Registry, as its page shows it after the @",
    "Icon": "the address of docs/pictures/icon.png as raw.githubusercontent.com serves it",
    "Banner": "the address of docs/pictures/banner.png as raw.githubusercontent.com serves it",
}
"""The lines of pyproject.toml that stay empty until the first release, and what belongs into them."""


def left_to_fill_in(project: Path) -> list[str]:
    """One sentence for each line that a release needs and that is empty or missing."""
    text = (project / "pyproject.toml").read_text(encoding="utf-8")
    return [
        f"pyproject.toml:{line_of(text, name)}: {name} is empty; expected {expected}. Fill it in and publish again."
        for name, expected in EXPECTED.items()
        if not value_of(text, name)
    ]


def value_of(text: str, name: str) -> str:
    """The value of a line ``name = "value"`` of pyproject.toml; "" without one."""
    found = re.search(rf'(?m)^{name} = "(.*)"', text)
    return found.group(1).strip() if found else ""


def line_of(text: str, name: str) -> int:
    """The number of the line that begins with a name; 1 without one."""
    return next((number for number, line in enumerate(text.splitlines(), 1) if line.startswith(f"{name} = ")), 1)


def is_new(project: Path, before: str) -> bool:
    """Whether pyproject.toml states another version than it did at a commit.

    Args:
        before: The commit; without one, or with one that is not there (a first or a forced push), any version is new.
    """
    shown = subprocess.run(
        ["git", "show", f"{before}:pyproject.toml"], cwd=project, capture_output=True, encoding="utf-8", check=False
    )
    if not before or shown.returncode:
        return True
    return value_of(shown.stdout, "version") != value_of((project / "pyproject.toml").read_text("utf-8"), "version")
