"""Captions of pictures: a text or JSON file beside each, or one text file with a caption on each line."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..wording import printable, quoted

KEYS = ("prompt", "caption", "text")
"""Keys of a JSON object under which a caption is looked for; ``prompt`` is that of the training set which the paper's
authors name (text-to-image-2M)."""

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
ENCODINGS = "expected UTF-8, or UTF-16 with its byte order mark"


class CaptionError(ValueError):
    """A caption cannot be used; the text begins with the file's name."""


def decoded(content: bytes, name: str) -> str:
    """The text of a file.

    Args:
        content: Bytes in UTF-8, with or without byte order mark, or in UTF-16 with it.
        name: The file's, for the message.

    Raises:
        CaptionError: It is in another encoding.
    """
    encoding = "utf-16" if content.startswith(UTF_16) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise CaptionError(
            f"{printable(name)} cannot be read as {encoding.removesuffix('-sig').upper()} (byte {error.start}); "
            f"{ENCODINGS}"
        ) from None
    # UTF-16 without its mark is valid UTF-8 in most Western languages.
    if "\0" in text:
        raise CaptionError(f"{printable(name)} has zero bytes in its text; {ENCODINGS}")
    return text


def caption_of(files: Sequence[Path]) -> str:
    """The caption of a picture; "" without one.

    Args:
        files: The caption files that lie beside the picture.

    Raises:
        CaptionError: One cannot be read, or two of them differ.
    """
    found: dict[str, str] = {}
    for path in files:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CaptionError(f"{printable(path.name)} cannot be read ({printable(error.strerror)})") from None
        text = READERS[path.suffix.lower()](decoded(content, path.name), path.name)
        found[path.name] = text.strip()
    if len(set(found.values())) > 1:
        raise CaptionError(f"{' and '.join(map(printable, found))} hold different captions of one picture")
    return next(iter(found.values()), "")


def lines_of(path: Path) -> list[str]:
    """The captions of a text file, one on each line; empty lines are none.

    Raises:
        ValueError: There is no such file, it cannot be read, or it holds no caption.
    """
    # A pipe would be waited for without end.
    if not path.is_file():
        raise ValueError(f"{path} is not a file; expected a text file with a caption on each line.")
    try:
        text = decoded(path.read_bytes(), path.name)
    except CaptionError as error:
        raise ValueError(f"{error}.") from None
    # `splitlines` would part a caption at other marks too.
    found = [line.strip() for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    if not found:
        raise ValueError(f"{printable(path.name)} holds no captions; expected one on each line.")
    return found


def _from_text(text: str, name: str) -> str:
    return text


def _from_json(text: str, name: str) -> str:
    expected = f"expected a text, or an object with one under {', '.join(KEYS)}"
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        raise CaptionError(f"{printable(name)} cannot be read as JSON; {expected}") from None
    if isinstance(value, dict):
        found = {key: value[key] for key in KEYS if key in value}
        if len(found) > 1 and len({str(each).strip() for each in found.values()}) > 1:
            raise CaptionError(f"{printable(name)} holds different captions under {' and '.join(found)}")
        value = next(iter(found.values()), None)
    if not isinstance(value, str):
        raise CaptionError(f"{printable(name)} holds no caption ({quoted(value, 40)}); {expected}")
    # JSON can name half a character, which no other text can hold.
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise CaptionError(f"{printable(name)} holds half a character (a lone surrogate); {expected}")
    return value


READERS: dict[str, Callable[[str, str], str]] = {".txt": _from_text, ".json": _from_json}
"""By suffix, from a file's text and its name to the caption."""
