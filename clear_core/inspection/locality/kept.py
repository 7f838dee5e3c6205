"""Results that stay in a folder, so that a measurement goes on after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...distill.disk import no_half_file
from ...wording import printable, quoted

IDENTITY = "measured.json"


def make_folder(folder: Path) -> None:
    """Makes a folder if it is not there.

    Raises:
        ValueError: A file is in its place, or in that of a folder above it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        file = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), folder)
        raise ValueError(f"{file} is a file; expected a folder, or a name that is free: choose another one.") from None


class Kept:
    """Values for JSON by name, each made once.

    Args:
        folder: Is made if it is not there; None keeps nothing.
        identity: What all values depend on, ready for JSON; compared with what the folder was begun with.

    Raises:
        ValueError: The folder was begun with something else, cannot be read, or is a file.
    """

    def __init__(self, folder: Path | None, identity: dict[str, Any]) -> None:
        self.folder = folder
        if folder is None:
            return
        make_folder(folder)
        path = folder / IDENTITY
        wanted = json.loads(json.dumps(identity))
        if not path.exists():
            self._write(IDENTITY, wanted)
            return
        begun = self._read(path)
        for name in sorted(begun.keys() | wanted.keys()):
            if begun.get(name) != wanted.get(name):
                raise ValueError(
                    f"{folder} holds results for {name} {quoted(begun.get(name))}, and now it is "
                    f"{quoted(wanted.get(name))}; go on as before, or choose another folder."
                )

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """The value of a name, made if it is not there."""
        path = None if self.folder is None else self.folder / f"{name}.json"
        if path is not None and path.exists():
            return self._read(path)["value"]
        value = json.loads(json.dumps(make()))
        if path is not None:
            self._write(path.name, {"value": value})
        return value

    def has(self, name: str) -> bool:
        return self.folder is not None and (self.folder / f"{name}.json").exists()

    def _write(self, name: str, value: dict[str, Any]) -> None:
        assert self.folder is not None
        with no_half_file(self.folder / name) as part:
            part.write_text(json.dumps(value), encoding="utf-8")

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            found: Any = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError("it is no object")
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} cannot be read ({printable(error, 100)}); delete it, and it is measured again."
            ) from None
        return dict(found)  # pyright: ignore[reportUnknownArgumentType] - what JSON holds
