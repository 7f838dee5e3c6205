"""Writes a record's table and chart beside it, and says what follows from it."""

from __future__ import annotations

from .advice import advice
from .chart import chart
from .journal import Journal
from .table import table


def write_report(journal: Journal) -> str:
    """Writes NAME.md and NAME.svg.

    Returns:
        What is to be shown at the end: the constants to change, what was left out, and where everything is.
    """
    given = advice(journal.results)
    markdown, picture = journal.file.with_suffix(".md"), journal.file.with_suffix(".svg")
    picture.write_text(chart(journal), encoding="utf-8")
    markdown.write_text(table(journal, given, picture.name), encoding="utf-8")
    lines = ["", *map(str, given)] if given else ["", "No constant can be judged by what was measured."]
    if rehearsal(journal):
        lines.insert(
            1, "A rehearsal at small sizes: these sentences show that they can be made, and mean nothing else."
        )
    if journal.left_out:
        lines += ["", f"Left out for lack of time: {'; '.join(journal.left_out)}."]
        lines += ["Start it again with the same --output to measure them."]
    return "\n".join([*lines, "", f"Written: {journal.file}, {markdown.name}, {picture.name}"])


def rehearsal(journal: Journal) -> bool:
    """Whether the record is one of small sizes."""
    return journal.identity.get("kind of run") != "full"
