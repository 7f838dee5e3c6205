"""The pictures of a folder with their captions: all of them checked before a model is loaded."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..weights.filename import is_hidden
from ..wording import printable
from .captions import READERS, CaptionError, caption_of
from .pictures import SUFFIXES, PictureError, read_picture

NAMED = 5
"""Files named in an error; the count tells the rest."""

OTHERS_FOLDERS = ("__MACOSX",)
"""Folders that archives of macOS bring; they hold no pictures."""

Progress = Callable[[Sequence["Source"]], Iterable["Source"]]


@dataclass(frozen=True)
class Source:
    """A picture's file, and the caption files beside it."""

    path: Path
    captions: tuple[Path, ...]


@dataclass(frozen=True)
class Picture:
    """A picture that can be encoded.

    Attributes:
        caption: "" without one.
        digest: Of the file's bytes.
    """

    path: Path
    caption: str
    digest: str

    def content(self) -> bytes:
        """The bytes of the file.

        Raises:
            ValueError: They are not those that were checked.
        """
        content = self.path.read_bytes()
        if digest_of(content) != self.digest:
            raise ValueError(f"{printable(self.path.name)} was changed after it was checked; start again.")
        return content


def digest_of(content: bytes) -> str:
    """BLAKE2b of some bytes, 128 bits in hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def sources_of(folder: Path) -> list[Source]:
    """The pictures of a folder, in the order of their names; hidden files and companions of macOS are none.

    Raises:
        ValueError: It is no folder, or holds no pictures.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; expected one with pictures.")
    pictures: list[Path] = []
    captions: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        # Pipes would be waited for without end.
        if is_hidden(path.name) or not path.is_file():
            continue
        suffix = path.suffix.lower()
        if suffix in SUFFIXES:
            pictures.append(path)
        elif suffix in READERS:
            captions[path.stem].append(path)
    if not pictures:
        raise ValueError(f"{folder} holds no pictures; expected {', '.join(SUFFIXES)}.")
    return [Source(path, tuple(captions[path.stem])) for path in pictures]


def checked_pictures(
    sources: Sequence[Source], *, skip_damaged: bool = False, known: Collection[str] = (), progress: Progress = iter
) -> tuple[list[Picture], list[str]]:
    """The pictures after a look at all of their pixels and captions.

    Args:
        skip_damaged: Whether to go on without those that cannot be used.
        known: Digests of pictures that need no second look.
        progress: Wraps the sources, to show how far it is.

    Returns:
        The pictures, and sentences for the user.

    Raises:
        ValueError: Some cannot be used; the sentence names the first few and their number.
    """
    pictures: list[Picture] = []
    damaged: list[str] = []
    for source in progress(sources):
        try:
            pictures.append(_checked(source, known))
        except CaptionError as error:
            damaged.append(str(error))
        except PictureError as error:
            damaged.append(f"{printable(source.path.name)} {error}")
    if damaged and not skip_damaged:
        raise ValueError(
            f"{len(damaged)} of {len(sources)} pictures cannot be used: {first_few(damaged)}. Mend or remove them, or "
            "go on without them by --skip-damaged."
        )
    if not pictures:
        raise ValueError(f"none of {len(sources)} pictures can be used: {first_few(damaged)}.")
    told: list[str] = []
    if damaged:
        told.append(f"Going on without {len(damaged)} of {len(sources)} pictures: {'; '.join(damaged)}.")
    if silent := [printable(picture.path.name) for picture in pictures if not picture.caption]:
        told.append(
            f"{len(silent)} of {len(pictures)} pictures have no caption, and get an empty text: "
            f"{first_few(silent, ', ')}."
        )
    return pictures, told


def _checked(source: Source, known: Collection[str]) -> Picture:
    caption = caption_of(source.captions)
    try:
        content = source.path.read_bytes()
    except OSError as error:
        raise PictureError(f"cannot be read ({printable(error.strerror)})") from None
    digest = digest_of(content)
    if digest not in known:
        read_picture(content)
    return Picture(source.path, caption, digest)


def items_of(pictures: Sequence[Picture]) -> dict[str, dict[str, str]]:
    """What samples are made from, by the pictures' names, for a folder's record."""
    return {
        picture.path.name: {"content": picture.digest, "caption": digest_of(picture.caption.encode())}
        for picture in pictures
    }


def pictures_of(sources: Sequence[Source], items: Mapping[str, Mapping[str, str]]) -> list[Picture]:
    """The pictures that another process has checked and recorded, without a look at them.

    Args:
        items: As :func:`items_of` gave them to the record.
    """
    by_name = {source.path.name: source for source in sources}
    return [
        Picture(by_name[name].path, caption_of(by_name[name].captions), item["content"]) for name, item in items.items()
    ]


def folders_inside(folder: Path) -> list[str]:
    """Sentences about folders in a folder of pictures, which nobody looks into."""
    inside = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not is_hidden(path.name) and path.name not in OTHERS_FOLDERS
    )
    if not inside:
        return []
    return [f"{folder} holds folders, whose pictures are not taken: {first_few(inside, ', ')}."]


def first_few(texts: Sequence[str], between: str = "; ") -> str:
    """The first of some texts, and how many there are more."""
    more = len(texts) - NAMED
    return between.join(texts[:NAMED]) + (f"{between}and {more} more" if more > 0 else "")
