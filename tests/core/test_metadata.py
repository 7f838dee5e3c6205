"""What the Manager and the Registry read: pyproject.toml, requirements, changelog, icon and banner."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it
    import tomli as tomllib

from tools.archive import SERVED
from tools.release import EXPECTED

PROJECT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
COMFY = PYPROJECT["tool"]["comfy"]
PICTURES = PROJECT / "docs" / "pictures"

# What must never be installed into somebody's ComfyUI: its own torch would be replaced.
TORCHS_OWN = re.compile(r"torch|triton|xformers|nvidia|flash.attn", re.IGNORECASE)


def requirement_lines(name: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (PROJECT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def test_the_name_is_one_the_registry_takes():
    name = PYPROJECT["project"]["name"]
    assert re.fullmatch(r"[a-z](?:[-_.]?[a-z0-9])+", name) and len(name) < 100
    assert "comfy" not in name


def test_the_version_is_the_changelogs_newest():
    version = PYPROJECT["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    headings = re.findall(r"^## (\S+)", (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == version
    numbers = [tuple(map(int, heading.split("."))) for heading in headings]
    assert numbers == sorted(numbers, reverse=True)


def test_dependencies_are_the_requirements_and_leave_torch_alone():
    dependencies = PYPROJECT["project"]["dependencies"]
    assert dependencies == requirement_lines("requirements.txt")
    assert [line for line in dependencies if TORCHS_OWN.search(line)] == []


def test_the_oldest_comfyui_is_the_one_that_the_pack_asks_for():
    tree = ast.parse((PROJECT / "nodes" / "host" / "version.py").read_text(encoding="utf-8"))
    (oldest,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "OLDEST"
    ]
    assert COMFY["requires-comfyui"] == ">=" + ".".join(map(str, oldest))


def test_what_people_read_is_there():
    assert 60 <= len(PYPROJECT["project"]["description"]) <= 300
    assert COMFY["DisplayName"]
    assert (PROJECT / PYPROJECT["project"]["license"]["file"]).is_file()
    assert (PROJECT / PYPROJECT["project"]["readme"]).is_file()


def test_no_device_is_warned_of_and_every_system_is_named():
    """The front end takes accelerators that are listed for the only ones, and CPUs cannot be listed."""
    assert PYPROJECT["project"]["classifiers"] == ["Operating System :: OS Independent"]
    workflow = (PROJECT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8")
    assert all(f"{system}-latest" in workflow for system in ("ubuntu", "windows", "macos"))


def test_scripts_are_served_once():
    """With ``web`` in pyproject.toml beside WEB_DIRECTORY, hosts serve every script under two names."""
    assert "web" not in COMFY
    assert 'WEB_DIRECTORY = "./web"' in (PROJECT / "__init__.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(("name", "ratio", "largest"), [("icon", 1, (400, 400)), ("banner", 21 / 9, (2520, 1080))])
def test_icon_and_banner_are_as_the_registry_wants_them(name, ratio, largest):
    from PIL import Image

    with Image.open(PICTURES / f"{name}.png") as picture:
        width, height = picture.size
    assert width / height == pytest.approx(ratio, rel=1e-2)
    assert (width, height) <= largest


def test_addresses_are_all_empty_or_all_right():
    """They are unknown until the first release, and a release is refused while they are."""
    urls = PYPROJECT["project"]["urls"]
    known = {
        "Repository": urls["Repository"],
        "Issues": urls["Issues"],
        "PublisherId": COMFY["PublisherId"],
        "Icon": COMFY["Icon"],
        "Banner": COMFY["Banner"],
    }
    assert set(EXPECTED) == set(known)
    if not any(known.values()):
        return
    repository = urlsplit(known["Repository"])
    assert (repository.scheme, repository.hostname) == ("https", "github.com")
    assert known["Issues"] == f"{known['Repository']}/issues"
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", known["PublisherId"])
    for name in ("Icon", "Banner"):
        start = f"https://raw.githubusercontent.com{repository.path}/main/"
        assert known[name].startswith(start) and (PROJECT / known[name].removeprefix(start)).is_file()


def test_what_is_served_is_there_and_what_is_left_out_too():
    assert [name for name in sorted(SERVED) if not (PROJECT / name).exists()] == []
    ignored = [line.strip("/") for line in requirement_lines(".comfyignore")]
    made = {".venv", "out"}  # by dev.py
    assert [name for name in ignored if name not in made and not (PROJECT / name).exists()] == []
