"""What a release ships: each fault, planted in a checkout, is found, and a release with empty fields is refused."""

from __future__ import annotations

import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.support import PROJECT
from tools import archive, release
from tools.archive_rules import KINDS, LEFT, findings
from tools.environment import RefusedError

SLICE = (
    *(".comfyignore", "pyproject.toml", "__init__.py", "web/js/graph.js", "clear_core/attention/self_test.py"),
    *("example_workflows/clear_upscale_faithful.jpg", "tools/check.py", "tests/core/test_archive.py"),
    *(one.file for one in LEFT),
)


def git(checkout: Path, *arguments: str) -> str:
    names = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *names, *arguments], cwd=checkout, check=True, capture_output=True, encoding="utf-8")
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout that a release may ship."""
    for name in SLICE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((PROJECT / name).read_bytes())
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    return tmp_path


def plant(checkout: Path, name: str, content: str | bytes) -> None:
    file = checkout / name
    file.parent.mkdir(parents=True, exist_ok=True)
    there = file.read_bytes() if file.exists() else b""
    file.write_bytes(there + (content if isinstance(content, bytes) else content.encode()))


def test_what_may_ship_ships_and_the_workshop_does_not(checkout):
    assert archive.offences(checkout) == []
    shipped = archive.shipped(checkout)
    assert set(shipped) == {name for name in SLICE if not name.startswith((".comfyignore", "tools/", "tests/"))}
    packed = archive.archive(checkout, archive.shipped(checkout))
    (checkout / "archive.zip").write_bytes(packed)
    with zipfile.ZipFile(checkout / "archive.zip") as file:
        assert file.namelist() == shipped
        assert file.read("web/js/graph.js") == (PROJECT / "web/js/graph.js").read_bytes()
    (checkout / "pyproject.toml").touch()
    assert archive.archive(checkout, archive.shipped(checkout)) == packed


# Each in a file of its own, `%` in its name, with what is said of it after the name.
FAULTS = (
    ("nodes/%.py", "import subprocess\n", "1: import subprocess: starts a program"),
    ("nodes/%.py", "\nfrom os import system as run\n", "2: os.system: starts a program"),
    ("nodes/%.py", "import os\ngetattr(os, 'execv')\n", "2: os.execv: starts a program"),
    ("nodes/%.py", "from tempfile import *\n", "1: tempfile.*: uses the folder"),
    (
        "nodes/%.py",
        "from concurrent.futures import ProcessPoolExecutor\n",
        "1: concurrent.futures.ProcessPoolExecutor: ",
    ),
    ("nodes/%.py", "import torch.multiprocessing as mp\n", "1: torch.multiprocessing: starts a program"),
    (
        "nodes/%.py",
        "from torch.utils.cpp_extension import load\n",
        "1: torch.utils.cpp_extension.load: starts a program",
    ),
    ("nodes/%.py", "eval('1')\n", "1: eval: runs text as code"),
    ("nodes/%.py", "model.eval()\n", "1: .eval(: runs text as code"),
    ("nodes/%.py", "def f(x):\n    exec(x)\n", "2: exec: runs text as code"),
    ("nodes/%.py", "import pickle\n", "1: pickle: reads what can run code"),
    ("nodes/%.py", "import torch as t\nt.load('x')\n", "2: torch.load: reads what can run code"),
    ("nodes/%.py", "import numpy\nnumpy.load('x', allow_pickle=True)\n", "2: allow_pickle=True: reads what can"),
    ("nodes/%.py", "import urllib3\n", "1: urllib3: uses the network"),
    ("nodes/%.py", "import asyncio\nasyncio.open_connection()\n", "2: asyncio.open_connection: uses the network"),
    ("nodes/%.py", "import gzip\n", "1: gzip: hides data"),
    ("nodes/%.py", "import requests\n", "1: requests: uses the network"),
    ("nodes/%.py", "from urllib import request\n", "1: urllib.request: uses the network"),
    ("nodes/%.py", "import aiohttp\naiohttp.ClientSession()\n", "2: aiohttp.ClientSession: uses the network"),
    ("nodes/%.py", "kind.from_pretrained('x')\n", "1: .from_pretrained: uses the network"),
    ("nodes/%.py", "# links by node.connect(other)\n", "1: .connect(: uses the network"),
    ("nodes/%.py", "import ctypes\n", "1: ctypes: reaches native code"),
    ("nodes/%.py", "import pip\n", "1: pip: installs packages"),
    ("nodes/%.py", "'''Then pip install it.'''\n", "1: pip install: installs packages"),
    ("nodes/%.py", f"x = '{'QUJD' * 70}'\n", "1: QUJD"),
    ("nodes/%.py", "import os\nos.environ['A']\n", "2: os.environ: reads the environment"),
    ("nodes/%.py", "import sqlite3\n", "1: sqlite3: opens a database"),
    ("nodes/%.py", "x = [" + "1, " * 100 + "]\n", "1: more than 300 letters"),
    ("web/js/%.js", "const run = go.bind(app);\n", "1: .bind(: uses the network"),
    ("web/js/%.js", "fetch('https://example.org')\n", "1: fetch('https:: uses the network"),
    ("web/js/%.js", "new Function('return 1')\n", "1: new Function(: runs text as code"),
    ("docs/%.md", "The call of `subprocess.run` is gone.\n", "1: subprocess.: starts a program"),
    ("nodes/test_planted.py", "", "a test"),
    ("clear_core/tests/planted.py", "", "a test"),
    ("web/js/planted%.test.js", "", "a test"),
    ("workshop/planted.py", "", "of the workshop"),
    ("docs/planted%.svg", "", "of a kind"),
    ("clear_core/planted%.so", b"\x7fELF", "of a kind"),
    ("example_workflows/planted%.jpg", b"\xff" * 65537, "65537 bytes"),
    ("docs/größe.md", "", "comfy-cli leaves out"),
    (".comfyignore", "!tools/check.py\n", "!tools/check.py: comfy-cli and git"),
)


def test_each_planted_fault_is_named_and_nothing_else(checkout):
    names = [name.replace("%", str(number)) for number, (name, _, _) in enumerate(FAULTS)]
    for name, (_, content, _) in zip(names, FAULTS, strict=True):
        plant(checkout, name, content)
    git(checkout, "add", "--force", ".")
    found = archive.offences(checkout)
    missed = [
        (name, said)
        for name, (_, _, said) in zip(names, FAULTS, strict=True)
        if not any(line.startswith(f"{name}:") and said in line for line in found)
    ]
    assert missed == []
    assert len(found) == len(FAULTS)


@pytest.mark.parametrize(
    "content",
    [
        "import re\nre.compile('x')\n",
        "from aiohttp import web\n",
        "from math import *\n",
        "from concurrent.futures import ThreadPoolExecutor\n",
        "import numpy\nnumpy.load('x', allow_pickle=False)\n",
        "import importlib.util\nimportlib.util.find_spec('triton')\n",
        "import os\nos.replace('a', 'b')\n",
        "from .pickle import code\n",
        "def evaluate(pip):\n    return pip.retrieval(evaluate)\n",
    ],
)
def test_what_is_harmless_is_not_flagged(content):
    assert [found.kind.name for found in findings("nodes/planted.py", content)] == []


def test_an_entry_of_the_list_that_keeps_nothing_is_named(checkout):
    (checkout / "clear_core/environment.py").write_text("", encoding="utf-8")
    (found,) = archive.offences(checkout)
    assert "clear_core/environment.py no longer" in found


def test_the_list_names_kinds_that_there_are_with_reasons():
    assert {one.kind for one in LEFT} <= {kind.name for kind in KINDS}
    assert all(len(one.reason) > 20 for one in LEFT)


def test_an_archive_that_is_too_large_is_named(checkout, monkeypatch):
    monkeypatch.setattr(archive, "LARGEST_ARCHIVE", 1000)
    (found,) = archive.offences(checkout)
    assert re.fullmatch(r"the archive has \d+ bytes; at most 1000 .*", found)


def test_includes_that_pass_the_check_by_are_named(checkout):
    settings = checkout / "pyproject.toml"
    settings.write_text(settings.read_text("utf-8").replace("includes = []", 'includes = ["out"]'), encoding="utf-8")
    (found,) = archive.offences(checkout)
    assert found.startswith("pyproject.toml: includes")


def test_files_that_help_names_in_the_packs_folder_are_there():
    ships = set(archive.shipped(PROJECT))
    pages = {page: " ".join(page.read_text("utf-8").split()) for page in (PROJECT / "web/docs").rglob("*.md")}
    named = {page: re.findall(r"`([\w./-]+\.\w+)` in the pack's folder", text) for page, text in pages.items()}
    assert sum(len(files) for files in named.values()) >= 4
    assert {(page.name, file) for page, files in named.items() for file in files if file not in ships} == set()


def test_another_archive_is_compared_name_by_name(checkout, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(archive, "PROJECT", checkout)
    other = tmp_path / "node.zip"
    other.write_bytes(archive.archive(checkout, archive.shipped(checkout)))
    assert archive.main(["--same-as", str(other)]) == 0
    assert "the same as in node.zip" in capsys.readouterr().out
    plant(checkout, "LICENSE", "")
    git(checkout, "add", "LICENSE")
    with pytest.raises(RefusedError, match="(?s)differ.*only here: LICENSE"):
        archive.main(["--same-as", str(other)])


def test_a_release_with_empty_fields_is_refused_in_a_sentence_for_each(checkout, monkeypatch):
    monkeypatch.setattr(archive, "PROJECT", checkout)
    settings = checkout / "pyproject.toml"
    text = re.sub(rf'(?m)^({"|".join(release.EXPECTED)}) = ".*"', r'\1 = "filled"', settings.read_text("utf-8"))
    settings.write_text(text, encoding="utf-8")
    assert archive.main(["--release"]) == 0
    settings.write_text(text.replace('PublisherId = "filled"', 'PublisherId = ""'), encoding="utf-8")
    (checkout / archive.OUTPUT).unlink()
    with pytest.raises(RefusedError) as refused:
        archive.main(["--release"])
    sentence = r"pyproject.toml:\d+: PublisherId is empty; expected the publisher's name .* Fill it in"
    assert re.search(sentence, str(refused.value)) and "1 found" in str(refused.value)
    assert not (checkout / archive.OUTPUT).exists()
    assert archive.main([]) == 0, "before the first release the archive can be made to be tried"
    settings.write_text(text.replace('PublisherId = "filled"\n', ""), encoding="utf-8")
    assert "PublisherId is empty" in release.left_to_fill_in(checkout)[0]


def test_a_version_is_new_if_it_differs_from_that_of_a_commit(checkout, monkeypatch, capsys):
    monkeypatch.setattr(archive, "PROJECT", checkout)
    git(checkout, "commit", "--quiet", "--message", "first")
    first = git(checkout, "rev-parse", "HEAD")
    assert archive.main(["--is-new", first]) == 0
    assert archive.main(["--is-new", ""]) == 0
    assert archive.main(["--is-new", "0" * 40]) == 0
    settings = checkout / "pyproject.toml"
    settings.write_text(re.sub(r'(?m)^version = ".*"', 'version = "99.0.0"', settings.read_text("utf-8")), "utf-8")
    assert archive.main(["--is-new", first]) == 0
    assert capsys.readouterr().out.splitlines() == ["is_new=false", "is_new=true", "is_new=true", "is_new=true"]
