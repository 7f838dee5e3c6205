"""The record of a run: every finished measurement is written at once, and a run that was killed goes on from it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any


class AnotherRunError(Exception):
    """The file holds figures of another device, version or revision. The message is one sentence."""


class Journal:
    """Measurements by their key, in the order in which they were finished.

    Attributes:
        file: Where it is written.
        results: By key: what a measurement found; ``{"section": ..., "failed": reason}`` if it could not be made.
        excluded: Reasons by the name of a run (a backend, a library) that brought the device or the process down.
        running: Key of the measurement in progress, and the name of the run within it; None between measurements.
        left_out: What the last start had no time for.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.identity: dict[str, Any] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.excluded: dict[str, str] = {}
        self.running: dict[str, str | None] | None = None
        self.left_out: list[str] = []
        if file.exists():
            try:
                stored = json.loads(file.read_text(encoding="utf-8"))
                self.identity, self.results = stored["identity"], stored["results"]
                self.excluded, self.running = stored["excluded"], stored["running"]
                self.left_out = stored["left_out"]
            except (ValueError, KeyError, TypeError):
                raise AnotherRunError(f"{file} is no record of this command; choose another --output.") from None

    def begin(self, identity: dict[str, Any]) -> None:
        """Takes the run up, or begins it.

        Args:
            identity: What has to be the same for figures to stand beside each other.

        Raises:
            AnotherRunError: It is not the same.
        """
        if self.identity:
            for name in [*self.identity, *identity]:
                before, now = self.identity.get(name), identity.get(name)
                if before != now:
                    raise AnotherRunError(
                        f"{self.file} was begun with another {name} ({before}, and here it is {now}); "
                        "choose another --output."
                    )
        self.identity, self.running = identity, None
        self.write()

    def start(self, key: str, run: str | None = None) -> None:
        """Notes what is in progress, so that a death can be told of."""
        self.running = {"key": key, "run": run}
        self.write()

    def finish(self, key: str, result: dict[str, Any]) -> None:
        """Keeps a result."""
        self.results[key], self.running = result, None
        self.write()

    def died(self, reason: str) -> str:
        """After a death: leaves out the run that was in progress from now on, or the whole measurement if none was.

        Returns:
            What is left out.
        """
        running, self.running = self.running, None
        if running is None or running["key"] is None:
            self.write()
            return ""
        key, run = running["key"], running["run"]
        if run is None or run in self.excluded:
            self.results[key] = {"section": "", "failed": reason}
        else:
            self.excluded[run] = f"{reason} (in {key})"
        self.write()
        return run or key

    def write(self) -> None:
        """Replaces the file as a whole: a kill leaves the old one or the new one."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        content = {
            "command": "python -m benchmarks.first_gpu",
            "identity": self.identity,
            "running": self.running,
            "excluded": self.excluded,
            "left_out": self.left_out,
            "results": self.results,
        }
        unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        for _ in range(100):
            try:
                os.replace(unfinished, self.file)
                return
            except PermissionError:  # On Windows, while somebody reads it.
                time.sleep(0.05)
        raise PermissionError(f"{self.file} cannot be written.")
