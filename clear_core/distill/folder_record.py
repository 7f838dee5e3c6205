"""What a folder was made from: a file in it that is compared before anybody goes on with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..wording import printable, quoted
from .disk import no_half_file
from .sample_files import sample_paths

RECORD = "samples.json"

Value = str | int | float | bool | None

NAMED = 5
"""Items named in a message; the count tells the rest."""

CHUNK = 1 << 22
"""Bytes of a file in memory at a time."""


@dataclass(frozen=True)
class Record:
    """What the samples of a folder were made from.

    Attributes:
        values: Settings by name, all of them compared.
        items: What each sample was made from, by its source's name, in the order of the indices: digests by what they
            are of ("content", "caption").
        notes: What a person reads for a value, by the value's name; not compared.
    """

    values: dict[str, Value]
    items: dict[str, dict[str, str]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def told(self, name: str) -> str:
        """A value as a message tells it."""
        value = self.values.get(name)
        text = value if isinstance(value, str) else quoted(value)
        return f"{printable(self.notes[name])} ({text})" if name in self.notes else printable(text)

    @property
    def digests(self) -> set[str]:
        """Digests of all contents."""
        return {item["content"] for item in self.items.values() if "content" in item}


def read_record(folder: Path) -> Record | None:
    """The record of a folder; None if it has none.

    Raises:
        ValueError: It is damaged.
    """
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        values = _mapping(found, "values", (str, int, float, bool, type(None)))
        items = _mapping(found, "items", dict)
        for item in items.values():
            if not all(isinstance(each, str) for each in item.values()):
                raise ValueError("an item has other values than texts")
        return Record(values, items, _mapping(found, "notes", str))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({printable(error, 100)}), so nobody knows what the samples beside it were "
            "made from; put the file back, or choose another folder."
        ) from None


def _mapping(found: Any, name: str, kind: type | tuple[type, ...]) -> dict[str, Any]:
    value = found.get(name) if isinstance(found, dict) else None
    if not isinstance(value, dict) or not all(isinstance(each, kind) for each in value.values()):
        raise ValueError(f"it has no {name}")
    return value


def begin(folder: Path, record: Record) -> None:
    """Writes the record into a new folder; in an old one, checks that it is the same.

    Raises:
        ValueError: The folder's samples were made from something else, or nobody knows from what.
    """
    begun = read_record(folder)
    if begun is not None:
        check_same(folder, begun, record)
        return
    if sample_paths(folder):
        raise ValueError(
            f"{folder} holds samples, and no {RECORD} that says what they were made from; choose another folder."
        )
    with no_half_file(folder / RECORD) as part:
        part.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def check_same(folder: Path, begun: Record, now: Record) -> None:
    """Refuse to go on with something else.

    Args:
        folder: For the message.
        begun: What the folder was made from so far.
        now: What it would be made from.

    Raises:
        ValueError: A value or an item differs; the sentence names it.
    """
    for name in [*begun.values, *(name for name in now.values if name not in begun.values)]:
        if begun.values.get(name) != now.values.get(name):
            raise ValueError(
                f"{folder} holds samples made with {name} {begun.told(name)}, and now it is "
                f"{now.told(name)}; go on as before, or choose another folder."
            )
    differences = [
        *(f"{printable(name)} is new" for name in now.items if name not in begun.items),
        *(f"{printable(name)} is gone" for name in begun.items if name not in now.items),
        *(
            f"{printable(name)} has another {what}"
            for name, item in now.items.items()
            for what in item
            if name in begun.items and begun.items[name].get(what) != item[what]
        ),
    ]
    if not differences and list(begun.items) != list(now.items):
        differences = ["their order"]
    if differences:
        more = len(differences) - NAMED
        raise ValueError(
            f"{folder} holds samples made from something else: {', '.join(differences[:NAMED])}"
            f"{f' and {more} more' if more > 0 else ''}; put it back as it was, or choose another folder."
        )


def fingerprint_of_samples(folder: Path, paths: Sequence[Path] | None = None) -> dict[str, Value]:
    """What a training remembers of its samples.

    Reads every byte once: about a second for each GB.

    Args:
        folder: Of samples.
        paths: Those of them that are used; None for all.

    Returns:
        ``samples``, their number, and ``sample_content``, a digest of names and contents.
    """
    used = sample_paths(folder) if paths is None else paths
    digest = hashlib.blake2b(digest_size=16)
    for path in used:
        digest.update(f"{path.name} {file_digest(path)}\n".encode())
    return {"samples": len(used), "sample_content": digest.hexdigest()}


def file_digest(path: Path) -> str:
    """BLAKE2b of a file, 128 bits in hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def unfinished(folder: Path) -> list[str]:
    """Sentences about samples that the folder's record names and that are not there.

    Raises:
        ValueError: The record is damaged.
    """
    record = read_record(folder)
    found = len(sample_paths(folder))
    if record is None or found >= len(record.items):
        return []
    return [
        f"{folder} holds {found} of the {len(record.items)} samples that were asked for; the others are not "
        "trained with unless the same command is run again."
    ]
