"""docs/compatibility.md shows what the compatibility tests recorded, and no failed test."""

from __future__ import annotations

import re

from tests.host.support_comfy.families import FAMILIES
from tests.host.support_comfy.test_only_models import KINDS, OTHERS
from tests.support import compatibility_table

TESTS = compatibility_table.PROJECT / "tests" / "host" / "compatibility"


def test_the_page_is_the_records():
    assert compatibility_table.PAGE.read_text(encoding="utf-8") == compatibility_table.render(
        compatibility_table.read_records()
    ), "run python3 -m tests.support.compatibility_table"


def test_every_answer_says_on_which_commit_it_was_recorded():
    """An answer may be older than the code; the page must say how old."""
    page = compatibility_table.PAGE.read_text(encoding="utf-8")
    for record in compatibility_table.read_records():
        for row in record["rows"]:
            day, commit = re.fullmatch(r"(\d{4}-\d\d-\d\d) ([0-9a-f]{7,}\+?)", row["recorded"]).groups()
            assert f"{day} at commit {commit} (" in page, row["name"]


def test_both_hosts_answered_every_row_and_none_failed():
    records = compatibility_table.read_records()
    names = [{row["name"] for row in record["rows"]} for record in records]
    assert len(records) >= 2
    marked = {
        name
        for file in TESTS.glob("test_*.py")
        for name in re.findall(r'mark\.row\(\s*"([^"]+)"', file.read_text(encoding="utf-8"))
    }
    marked |= {*FAMILIES, *(f"{kind}, enlarged" for kind in (*KINDS, *OTHERS))}
    assert all(rows == marked for rows in names), "record anew with CLEAR_COMPATIBILITY_RECORD=1"
    assert [row["name"] for record in records for row in record["rows"] if row["outcome"] == "failed"] == []
    # A row that was skipped on every host tests nothing.
    for name in names[0]:
        assert any(row["outcome"] == "passed" for record in records for row in record["rows"] if row["name"] == name), (
            f"{name} was not tried anywhere"
        )
