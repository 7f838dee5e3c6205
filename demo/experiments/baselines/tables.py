"""The comparison's counts as Markdown: the paper's table 2, and the sizes that match on the tiny FLUX's grids."""

from __future__ import annotations

from clear_core import SequenceLayout

from ..guidance_table import line, table_head
from .matched import GRIDS, TARGETS, image_keys, matches
from .paper import FIGURES
from .registry import KINDS
from .swin import Swin


def tables() -> str:
    """Both tables of README.md."""
    return "\n\n".join([paper_table(), matched_table()])


def paper_table() -> str:
    """GFLOP of one layer at 1024 px, counted and as the paper's table 2 prints them."""
    lines = table_head(["attention", "GFLOP, counted", "GFLOP, paper"])
    for figure in FIGURES:
        if figure.where == "table 2" and "distill" not in figure.row:
            lines.append(line([figure.attention.name, f"{figure.value:.2f}", figure.printed]))
    return "\n".join(lines)


def matched_table() -> str:
    """A row for each Swin window of each grid: the nearest size of every other kind, and its keys for a query."""
    kinds = [kind for kind, one in KINDS.items() if one.sizes(GRIDS[0]) and kind != "Swin"]
    lines = table_head(["grid", "Swin", *kinds])
    for grid in GRIDS:
        # Text is the same for all of them.
        layout = SequenceLayout(0, grid)
        for window in TARGETS[grid]:
            swin, found = Swin(window), matches(layout, window)
            own = f"{window} ({image_keys(swin, layout):g}; shifted {round(image_keys(swin, layout, 1), 2):g})"
            others = (f"{found[kind].size} ({found[kind].keys:.1f})" for kind in kinds)
            lines.append(line([f"{grid[0]} x {grid[1]}", own, *others]))
    return "\n".join(lines)
