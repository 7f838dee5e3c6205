"""The pages in which calculated tables stand, outside of the folders that calculate them."""

from __future__ import annotations

from tests.support import PROJECT
from tools.tables import END

PAGES = tuple(
    page.relative_to(PROJECT).as_posix()
    for page in (PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md")))
    if END in page.read_text(encoding="utf-8")
)
