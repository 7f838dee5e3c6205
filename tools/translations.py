"""The nodes' texts in other languages, from one table: ``tools/translations.json``.

A row holds an English text and what it is in each language; ``at`` names the one place that a row is for, if the same
English text is something else there. A row belongs to the text, not to a place: an English text that changes has to be
translated anew, and ``dev.py check`` says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.environment import RefusedError

TABLE = Path("tools/translations.json")


@dataclass(frozen=True)
class Words:
    """The words of a help page that is made of the table.

    Attributes:
        inputs, outputs: Headings.
        what: Head of the column that tells what each does.
        more: The line that points to the English page.
    """

    inputs: str
    outputs: str
    what: str
    more: str


LANGUAGES: dict[str, Words | None] = {
    "zh": None,
    "ja": Words("入力", "出力", "説明", "くわしい説明は英語のページにあります"),
    "ko": Words("입력", "출력", "설명", "자세한 설명은 영어 페이지에 있습니다"),
}
"""By the folder in ``locales``; None where the help pages are written by hand."""

Locale = dict[str, Any]
"""What ``nodeDefs.json`` holds: by node, its display name, description, inputs and outputs."""


def translated(project: Path, english: Locale) -> dict[str, Locale]:
    """The nodes' texts by language.

    Raises:
        RefusedError: The table lacks a text, or holds one that no node has.
    """
    general: dict[str, dict[str, str]] = {}
    special: dict[str, dict[str, str]] = {}
    for row in json.loads((project / TABLE).read_text(encoding="utf-8")):
        lacking = [language for language in LANGUAGES if not row.get(language, "").strip()]
        if lacking:
            raise RefusedError(
                f"{TABLE.as_posix()} has {row['en']!r} without {', '.join(lacking)}; translate it there."
            )
        if "at" in row:
            special[row["at"]] = row
        else:
            general[row["en"]] = row
    places = dict(leaves(english))
    used: set[str] = set()

    def row_of(place: tuple[str, ...], text: str) -> dict[str, str]:
        name = ".".join(place)
        row = special.get(name) or general.get(text)
        if row is None or row["en"] != text:
            raise RefusedError(f"{TABLE.as_posix()} lacks {text!r} ({name}); add it there in every language.")
        used.add(name if name in special else text)
        return row

    rows = {place: row_of(place, text) for place, text in places.items()}
    unused = sorted({*general, *special} - used)
    if unused:
        raise RefusedError(f"{TABLE.as_posix()} holds {unused[0]!r}, which no node says any more; remove that row.")
    return {language: rebuilt(english, lambda place: rows[place][language]) for language in LANGUAGES}  # noqa: B023


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text, with its place."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def rebuilt(value: Any, text_at: Any, path: tuple[str, ...] = ()) -> Any:
    """The same dictionaries with other texts."""
    if isinstance(value, dict):
        return {key: rebuilt(inner, text_at, (*path, key)) for key, inner in value.items()}
    return text_at(path)


def help_page(words: Words, node: dict[str, Any], english: dict[str, Any], name: str) -> str:
    """A node's help in a language without a page of its own: what its tooltips say, and where the rest is.

    Args:
        node: The node's texts in the language.
        english: The same in English.
        name: The node's id, which names its English page.
    """
    lines = [f"# {node['display_name']}", "", node["description"]]
    for heading, part in ((words.inputs, "inputs"), (words.outputs, "outputs")):
        told = [(english[part][key]["name"], entry) for key, entry in node[part].items() if "tooltip" in entry]
        lines += ["", f"## {heading}", "", f"| {heading} | {words.what} |", "|---|---|"]
        lines += [f"| {entry['name']} `{original}` | {entry['tooltip']} |" for original, entry in told]
    return "\n".join([*lines, "", f"{words.more}: `web/docs/{name}/en.md`", ""])
