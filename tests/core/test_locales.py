"""Names, tooltips and help pages agree in all languages; the host tests compare the English ones with the nodes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tools.translations import LANGUAGES as TRANSLATED
from tools.translations import leaves

PROJECT = Path(__file__).resolve().parents[2]
LOCALES = PROJECT / "locales"
PAGES = PROJECT / "web" / "docs"
LANGUAGES = ("en", *TRANSLATED)

# Files that ComfyUI reads in a language's folder; any other would never be seen.
READ_BY_THE_HOST = {"main.json", "nodeDefs.json", "commands.json", "settings.json"}

# What the front end's translator takes for its own syntax.
NOT_PLAIN = re.compile(r"[{}@|$%<>]")

SCRIPTS = {
    "zh": re.compile(r"[\u4e00-\u9fff]"),
    "ja": re.compile(r"[\u3040-\u30ff]"),
    "ko": re.compile(r"[\uac00-\ud7af]"),
}


# Heads of the first column of a page's tables.
HEADS = ["input", "output", "输入", "输出"]
HEADS += [head for words in TRANSLATED.values() if words for head in (words.inputs, words.outputs)]


def node_texts(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))


ENGLISH = node_texts("en")


def page_of(node: str, language: str) -> Path:
    """Where the front end looks first; a language without a page there gets ``<node>.md``."""
    return PAGES / node / f"{language}.md"


def test_the_languages_are_these():
    assert sorted(path.name for path in LOCALES.iterdir() if path.is_dir()) == sorted(LANGUAGES)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_locale_holds_what_the_host_reads(language):
    assert {path.name for path in (LOCALES / language).iterdir()} <= READ_BY_THE_HOST


@pytest.mark.parametrize("language", [language for language in LANGUAGES if language != "en"])
def test_a_translation_names_what_exists_and_all_of_it(language):
    assert {place for place, _ in leaves(node_texts(language))} == {place for place, _ in leaves(ENGLISH)}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_is_there_and_free_of_the_translators_syntax(language):
    for place, text in leaves(node_texts(language)):
        assert isinstance(text, str) and text.strip() == text != "", place
        assert not NOT_PLAIN.search(text), (place, text)


@pytest.mark.parametrize("language", TRANSLATED)
def test_texts_are_in_their_language(language):
    for place, text in leaves(node_texts(language)):
        assert place[-1] == "name" or SCRIPTS[language].search(text), (place, text)


@pytest.mark.parametrize("language", TRANSLATED)
def test_a_translation_keeps_the_values_that_the_english_text_names(language):
    """Numbers and the words of menus: what a tooltip says is to be found on the node."""
    values = re.compile(r"\d+(?:\.\d+)?|\b(?:auto|none|shift|constant|decay|clipped|fading|wavelet|dense)(?=[:;])")
    found = dict(leaves(node_texts(language)))
    for place, text in leaves(ENGLISH):
        # A megapixel is a hundred times ten thousand pixels in Chinese.
        told = set(re.findall(r"\d+(?:\.\d+)?|[a-z]+", found[place].replace("200 万", "2 ")))
        if place[-1] in ("tooltip", "description"):
            assert set(values.findall(text)) <= told, (place, found[place])


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", ENGLISH)
def test_the_page_tells_of_every_input_and_output(node, language):
    text = page_of(node, language).read_text(encoding="utf-8")
    assert text.startswith(f"# {node_texts(language)[node]['display_name']}\n")
    described = [name for name in ENGLISH[node]["inputs"] if name != "control_after_generate"]
    described += [output["name"] for output in ENGLISH[node]["outputs"].values()]
    assert [name for name in described if f"`{name}`" not in text] == []


@pytest.mark.parametrize("node", ENGLISH)
def test_the_chinese_page_uses_the_names_on_the_node(node):
    text = page_of(node, "zh").read_text(encoding="utf-8")
    for place, name in leaves(node_texts("zh")[node]):
        if place[-1] == "name" and "control_after_generate" not in place:
            english = ENGLISH[node]
            for step in place:
                english = english[step]
            if place[0] == "outputs" or english != name:
                assert f"{name} `" in text, name


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", ENGLISH)
def test_the_pages_tables_list_nothing_that_the_node_lacks(node, language):
    text = page_of(node, language).read_text(encoding="utf-8")
    existing = {*ENGLISH[node]["inputs"], *(output["name"] for output in ENGLISH[node]["outputs"].values())}
    tables = re.findall(rf"^\| (?:{'|'.join(HEADS)}) \|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert tables
    for row in "".join(tables).splitlines()[1:]:
        assert set(re.findall(r"`(\w+)`", row.split("|")[1])) <= existing, row


def test_no_page_is_without_a_node():
    pages = {path.relative_to(PAGES).as_posix() for path in PAGES.rglob("*.md")}
    names = ("", *(f"/{language}" for language in LANGUAGES))
    assert pages == {f"{node}{name}.md" for node in ENGLISH for name in names}


@pytest.mark.parametrize("node", ENGLISH)
def test_languages_without_a_page_get_the_english_one(node):
    """Two files of one text: without the second, every look at the help in English logs a page that is not there."""
    assert (PAGES / f"{node}.md").read_bytes() == page_of(node, "en").read_bytes()
