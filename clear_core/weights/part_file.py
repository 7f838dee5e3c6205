"""A part file: what has come of a download, with a record of how much of it was written in order.

Its length alone says nothing. With ``HF_HUB_ENABLE_HF_TRANSFER`` the client writes pieces in any order, and a file
whose machine lost power can end in zeros. The record holds a length and the SHA-256 of the bytes before it; both are
checked before a later attempt goes on.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .fingerprint import CHUNK, Progress

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STEP = 8 << 20
"""Bytes between two records; the client writes blocks of 10 MB."""


class PartFile:
    """The part file of one download.

    Attributes:
        path: Its location; the record lies beside it.
        length: Bytes from the start that are known to be right.
        digest: SHA-256 of these bytes.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.record = path, path.with_name(path.name + ".record")
        self.length, self.digest = 0, hashlib.sha256()

    def size(self) -> int:
        """Bytes on disk; 0 if there is no such file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def restore(self) -> None:
        """Cuts the file down to what its record vouches for: nothing, if there is no record or it does not agree."""
        if self.size() == self.length:
            return
        self.length, self.digest = 0, hashlib.sha256()
        length, expected = self.recorded()
        if 0 < length <= self.size():
            found, left = hashlib.sha256(), length
            with open(self.path, "rb", buffering=0) as file:
                while left and (block := file.read(min(left, CHUNK))):
                    found.update(block)
                    left -= len(block)
            if found.hexdigest() == expected:
                self.length, self.digest = length, found
        if self.size() != self.length:
            os.truncate(self.path, self.length)

    def recorded(self) -> tuple[int, str]:
        """Length and SHA-256 of the record; (0, "") without a readable one."""
        try:
            found = json.loads(self.record.read_bytes())
            return int(found["length"]), str(found["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, ""

    def write_record(self) -> None:
        """Records the present length. A failure is no loss: an older record vouches for less of the same bytes."""
        new = self.record.with_name(self.record.name + ".new")
        with suppress(OSError):
            new.write_text(json.dumps({"length": self.length, "sha256": self.digest.hexdigest()}))
            os.replace(new, self.record)

    def discard(self) -> None:
        """Removes file and record. A failure is left: what remains is not trusted later, and the cause counts more."""
        for path in (self.path, self.record, self.record.with_name(self.record.name + ".new")):
            with suppress(OSError):
                path.unlink()
        self.length, self.digest = 0, hashlib.sha256()

    def publish(self, target: Path) -> None:
        """Gives the file its final name."""
        os.replace(self.path, target)
        self.discard()


class PartWriter(io.BufferedWriter):
    """Appends to a part file, and records and reports its length after each write.

    Attributes:
        stopped: The exception of the progress callback or of the disk, to tell it from one of the client.
    """

    def __init__(self, part: PartFile, total: int, progress: Progress | None) -> None:
        super().__init__(io.FileIO(part.path, "ab"))
        self.part, self.total, self.progress = part, total, progress
        self.noted = part.length
        self.stopped: BaseException | None = None

    def write(self, buffer: ReadableBuffer, /) -> int:
        try:
            written = super().write(buffer)
            self.part.digest.update(buffer)
            self.part.length += written
            if self.part.length - self.noted >= STEP:
                self.flush()
                self.part.write_record()
                self.noted = self.part.length
            if self.progress:
                self.progress(self.tell(), self.total)
        except BaseException as stop:
            self.stopped = stop
            raise
        return written

    def truncate(self, size: int | None = None, /) -> int:
        """Called by newer clients, with nothing left before it, when storage ignores the range and sends the whole."""
        kept = super().truncate(size)
        if kept == 0:
            self.part.length, self.part.digest, self.noted = 0, hashlib.sha256(), 0
        return kept

    def close(self) -> None:
        fresh = not self.closed and self.part.length > self.noted
        super().close()
        if fresh:
            self.part.write_record()
