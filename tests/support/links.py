"""Finds the links of a text and reports the broken ones, without network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

# Text in code is not a link. A fence may be indented; in-line code may span lines.
FENCED = re.compile(r"^ *(```|~~~).*?^ *\1", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?: {4}.*\n?)+")
IN_LINE_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)

# [text with [brackets] or a picture](target_(with parentheses) "title")
MARKDOWN_LINK = re.compile(
    r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^\s<>)]*(?:\([^\s)]*\)[^\s<>)]*)?)>?(?:\s+\"[^\"]*\")?\s*\)"
)
MARKDOWN_IMAGE = re.compile(r"!\[[^\]]*\]\(\s*<?([^\s<>)]+)")
REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)", re.MULTILINE)
HTML_TARGET = re.compile(r"<[a-zA-Z][^>]*?\s(?:href|src)\s*=\s*[\"']([^\"']*)[\"']")
BARE_ADDRESS = re.compile(r"https?://[^\s<>()\[\]\"'`，。；、）]+")
HEADING = re.compile(r"^ {0,3}#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
HTML_ANCHOR = re.compile(r"<[a-zA-Z][^>]*?\s(?:id|name)\s*=\s*[\"']([^\"']+)[\"']")

HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}", re.IGNORECASE)
THIS_MACHINE = ("localhost", "127.0.0.1")


@dataclass(frozen=True)
class Rules:
    """Rules for the links of a text.

    Attributes:
        folder: Where relative links start; None where the text is shown without any folder, as notes in a graph are.
        media_folder: Where relative pictures start, if elsewhere than links.
        root: Folder that no relative link may leave.
    """

    folder: Path | None
    root: Path
    media_folder: Path | None = None


def without_code(text: str) -> str:
    text = FENCED.sub("", text)
    return IN_LINE_CODE.sub("", INDENTED.sub("", text))


def anchors_of(text: str) -> set[str]:
    """Anchors of a Markdown text as GitHub makes them: one for each heading, repeated ones numbered."""
    found = set(HTML_ANCHOR.findall(text))
    seen: dict[str, int] = {}
    for heading in HEADING.findall(FENCED.sub("", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        number = seen.get(slug, 0)
        seen[slug] = number + 1
        found.add(f"{slug}-{number}" if number else slug)
    return found


def address_problem(address: str) -> str | None:
    """What is wrong with the form of an http(s) address."""
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError as error:
        return f"{address}: {error}"
    if host in THIS_MACHINE:
        return None
    if parts.scheme != "https":
        return f"{address}: not https"
    if not HOST.fullmatch(host):
        return f"{address}: {host!r} is no host"
    if "//" in parts.path or " " in address:
        return f"{address}: an empty step or a space in its path"
    return None


def relative_problem(target: str, folder: Path | None, own_text: str, root: Path) -> str | None:
    """What is wrong with a link to another file of the project, or to a heading."""
    path, _, anchor = target.partition("#")
    if folder is None:
        return f"{target}: relative, and this text has no place that it could start from"
    if not path:
        return None if unquote(anchor) in anchors_of(own_text) else f"{target}: no such heading here"
    file = (folder / unquote(path)).resolve()
    if not file.is_relative_to(root):
        return f"{target}: leaves the project"
    if not file.exists():
        return f"{target}: there is no {file.relative_to(root)}"
    if anchor and (file.suffix != ".md" or unquote(anchor) not in anchors_of(file.read_text(encoding="utf-8"))):
        return f"{target}: no such heading in {file.relative_to(root)}"
    return None


def problems(text: str, rules: Rules) -> list[str]:
    """One sentence for every broken link of a Markdown or HTML text."""
    plain = without_code(text)
    media = set(MARKDOWN_IMAGE.findall(plain))
    media |= {
        target
        for target in HTML_TARGET.findall(plain)
        if re.search(rf"<(?:img|video|source)[^>]*[\"']{re.escape(target)}[\"']", plain)
    }
    targets = {*MARKDOWN_LINK.findall(plain), *REFERENCE.findall(plain), *HTML_TARGET.findall(plain), *media}
    # Addresses count in code as well: they are copied from there.
    addresses = {target for target in targets if target.lower().startswith(("http:", "https:"))}
    addresses |= {match.rstrip(".,;:!?*_") for match in BARE_ADDRESS.findall(text)}
    found = [address_problem(address) for address in addresses]
    for target in targets - addresses:
        if target.startswith(("mailto:", "data:")):
            continue
        folder = rules.media_folder if target in media and rules.media_folder else rules.folder
        found.append(relative_problem(target, folder, text, rules.root))
    return sorted(problem for problem in found if problem)


def texts_of(value: Any) -> Iterator[str]:
    """Every text inside a JSON value."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from texts_of(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_of(inner)
    elif isinstance(value, str):
        yield value


def json_problems(file: Path, rules: Rules) -> list[str]:
    """The same for every text of a JSON file."""
    texts = texts_of(json.loads(file.read_text(encoding="utf-8")))
    return [problem for text in texts for problem in problems(text, rules)]
