"""Every link of the documents leads somewhere: files and headings exist, addresses have the form of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.links import Rules, address_problem, anchors_of, json_problems, problems

PROJECT = Path(__file__).resolve().parents[2]
PAGES = PROJECT / "web" / "docs"
NOT_OURS = {".venv", ".git", "out", "node_modules"}
KINDS = (".md", ".html", ".json", ".yml", ".toml")


def is_ours(file: Path) -> bool:
    place = file.relative_to(PROJECT)
    return not NOT_OURS & set(place.parts) and not any(part.endswith("_cache") for part in place.parts)


DOCUMENTS = sorted(file for kind in KINDS for file in PROJECT.rglob(f"*{kind}") if is_ours(file))


def rules_for(file: Path) -> Rules:
    """GitHub starts at the document's folder. The app shows help pages and notes, where a link has no folder to start
    from, and takes a help page's pictures from ``docs``, whatever the page's language."""
    if file.is_relative_to(PAGES):
        return Rules(None, PROJECT, media_folder=PAGES)
    return Rules(None if file.suffix == ".json" else file.parent, PROJECT)


def test_the_documents_are_found():
    names = {file.relative_to(PROJECT).as_posix() for file in DOCUMENTS}
    assert {"README.md", "CHANGELOG.md", "web/docs/CLEARAttention/zh.md", "locales/zh/nodeDefs.json"} <= names
    assert any(name.startswith("example_workflows/") for name in names)


@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.relative_to(PROJECT).as_posix())
def test_every_link_leads_somewhere(file):
    check = (
        json_problems(file, rules_for(file))
        if file.suffix == ".json"
        else problems(file.read_text(encoding="utf-8"), rules_for(file))
    )
    assert check == []


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[a](missing.md)", id="no such file"),
        pytest.param("[a](there.md#nowhere)", id="no such heading there"),
        pytest.param("[a](#nowhere)", id="no such heading here"),
        pytest.param("![a](missing.png)", id="no such picture"),
        pytest.param('<img src="missing.png" alt="">', id="no such picture in HTML"),
        pytest.param('<a href="missing.md">a</a>', id="no such file in HTML"),
        pytest.param("[a][b]\n\n[b]: missing.md", id="no such file by reference"),
        pytest.param("[![picture](there.md)](missing.md)", id="behind a picture"),
        pytest.param("[a](../../../../../etc/hosts)", id="outside the project"),
        pytest.param("[a](http://example.org)", id="not https"),
        pytest.param("see https://example", id="no host"),
        pytest.param("`git clone https://exa mple.org//x` and https://example.org//x", id="empty step in the path"),
    ],
)
def test_a_broken_link_is_seen(text, tmp_path):
    (tmp_path / "there.md").write_text("# Here\n")
    assert len(problems(text, Rules(tmp_path, tmp_path))) >= 1


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[a](there.md) [b](there.md#the-first-gpu) [c](there.md#twice-1)", id="file and headings"),
        pytest.param("# My heading\n\n[a](#my-heading)", id="heading here"),
        pytest.param("```\n[a](missing.md)\n```\n`[b](missing.md)`\n\n    [c](missing.md)\n", id="in code"),
        pytest.param("[a](https://example.org/x_(y)) <https://example.org>. (https://example.org/b).", id="addresses"),
        pytest.param("http://127.0.0.1:8188 and http://localhost:8188", id="this machine"),
    ],
)
def test_a_good_link_is_left_alone(text, tmp_path):
    (tmp_path / "there.md").write_text("# The first GPU\n\n## Twice\n\n## Twice\n")
    assert problems(text, Rules(tmp_path, tmp_path)) == []


def test_a_relative_link_in_the_app_is_seen(tmp_path):
    (tmp_path / "there.md").write_text("# Here\n")
    assert problems("[a](there.md)", Rules(None, tmp_path)) != []
    assert problems("![a](there.md)", Rules(None, tmp_path, media_folder=tmp_path)) == []


def test_anchors_are_githubs():
    assert anchors_of("# A `b_c`, d & e!\n# [Link](x.md) here\n") == {"a-b_c-d--e", "link-here"}


@pytest.mark.parametrize("address", ["https://", "https://[::1", "https://example.org:port/"])
def test_what_is_no_address_is_seen(address):
    assert address_problem(address)
