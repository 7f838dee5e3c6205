"""One row of the compatibility table, checked: what was compared with what, and how far apart it was."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import pytest
import torch
from torch import Tensor

from .sampling import relative_error

RECORDS_IN_CHECKOUT = "tests/host/compatibility/records"
RECORDS = Path(__file__).resolve().parents[3] / RECORDS_IN_CHECKOUT

FELT = 1e-3
"""How far the window must move the result, relatively, or a comparison with the oracle says nothing."""


@dataclass
class Cell:
    """The findings of one test; each comparison asserts and records.

    Attributes:
        against: "oracle", "stock" or "one line", in the order of the comparisons.
        error: The largest relative error of all comparisons; 0.0 where all were bit by bit.
        note: Peculiarities of this ComfyUI, for the table.
    """

    against: list[str] = field(default_factory=list)
    error: float = 0.0
    note: str = ""

    def oracle(
        self, actual: Tensor, expected: Tensor, without: Tensor, tolerance: float = 1e-5, felt: float = FELT
    ) -> None:
        """``actual`` is what dense attention with the window's mask gives; ``without`` has no window."""
        self._compare("oracle", actual, expected, tolerance)
        moved = relative_error(without, expected)
        assert moved > felt, f"the window moves the result by {moved:.1e} only: the comparison says nothing"

    def stock(self, actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
        """``actual`` is what the graph gives without CLEAR."""
        self._compare("stock", actual, expected, tolerance)

    def identical(self, actual: Tensor, expected: Tensor, against: str = "stock") -> None:
        """As :meth:`stock`, bit by bit."""
        self._note(against)
        assert torch.equal(actual, expected), f"they differ by {relative_error(actual, expected):.1e}"

    def one_line(self, messages: Iterable[str], *words: str) -> None:
        """Exactly one of the log lines is ours, and it has these words."""
        ours = [line for line in messages if line.startswith("CLEAR")]
        self._note("one line")
        assert len(ours) == 1 and all(word in ours[0] for word in words), ours

    def silent(self, messages: Iterable[str]) -> None:
        """None of the log lines is ours."""
        ours = [line for line in messages if line.startswith("CLEAR")]
        assert not ours, ours

    def _compare(self, against: str, actual: Tensor, expected: Tensor, tolerance: float) -> None:
        self._note(against)
        error = relative_error(actual, expected)
        self.error = max(self.error, error)
        assert error < tolerance

    def _note(self, against: str) -> None:
        if against not in self.against:
            self.against.append(against)


CELL = pytest.StashKey[Cell]()
"""Where a test keeps its findings until its report is made."""


@dataclass
class Row:
    """A row of the table as one ComfyUI answered it.

    Attributes:
        section: Heading; first line of the module's docstring.
        name: What stands in the graph beside CLEARAttention.
        rule: What holds then, one sentence.
        outcome: "passed", "failed" or "absent" (the node or pack is not there).
        checks: Names of the tests that answered.
        recorded: Date and commit of the code that answered: "2026-11-21 18c85cf", "+" after it if files had changed.
    """

    section: str
    name: str
    rule: str
    outcome: str = "absent"
    against: list[str] = field(default_factory=list)
    error: float = 0.0
    note: str = ""
    checks: list[str] = field(default_factory=list)
    recorded: str = ""

    def add(self, check: str, outcome: str, cell: Cell, reason: str) -> None:
        """Take in the answer of one test of this row."""
        self.checks.append(check)
        ranks = ("absent", "passed", "failed")
        self.outcome = max(self.outcome, outcome, key=ranks.index)
        self.against += [kind for kind in cell.against if kind not in self.against]
        self.error = max(self.error, cell.error)
        for note in (cell.note, reason):
            if note and note not in self.note:
                self.note = f"{self.note}; {note}" if self.note else note


class Record:
    """The rows of one session."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def row_of(self, item: pytest.Item) -> Row | None:
        """The row that a test's ``row`` marker names; made at its first test."""
        marker = item.get_closest_marker("row")
        if marker is None:
            return None
        name, rule = marker.args
        section = (item.module.__doc__ or "").splitlines()[0].rstrip(".")
        return self.rows.setdefault(name, Row(section, name, rule))

    def write(self, folder: Path, versions: dict[str, str]) -> Path:
        """Writes the record of this ComfyUI; rows that were not tried this time stay as they were recorded."""
        path = folder / f"comfyui-{versions['ComfyUI']}.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"versions": {}, "rows": []}
        versions = {
            **before["versions"],
            **versions,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.machine()}, CPU",
        }
        answered = {name: asdict(row) for name, row in self.rows.items()}
        recorded = f"{date.today()} {commit()}"
        for row in answered.values():
            row["error"] = float(f"{row['error']:.1e}")
            row["recorded"] = recorded
        rows = list(({row["name"]: row for row in before["rows"]} | answered).values())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        return path


def commit() -> str:
    """The checkout's commit, with a "+" if a file other than the records differs from it; "unknown" without git."""
    git = ("git", "-C", str(RECORDS))
    try:
        name = subprocess.check_output([*git, "rev-parse", "--short", "HEAD"], text=True).strip()
        changed = subprocess.call([*git, "diff", "--quiet", "HEAD", "--", ":/", f":(exclude,top){RECORDS_IN_CHECKOUT}"])
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}{'+' if changed else ''}"
