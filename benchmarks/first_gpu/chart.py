"""Milliseconds of one layer as a bar chart, written as plain SVG: a card's machine may have no library for it."""

from __future__ import annotations

from html import escape
from math import log10
from typing import Any

from .advice import layer_name, layers_in_order
from .journal import Journal
from .published import NATTEN_4K, SOURCE

WIDTH, LEFT, RIGHT, ROW, HEAD = 900, 330, 130, 20, 64
COLOURS = {"dense": "#8c8c8c", "window": "#2a6fbb", "other": "#c98a1b", "published": "#b8b8b8"}


def chart(journal: Journal) -> str:
    """Bars on a logarithmic scale, layer by layer: dense attention, the published order, every backend, others."""
    groups = grouped(journal)
    times = [row[1] for rows in groups.values() for row in rows]
    if not times:
        times = [1.0]
    low, high = log10(min(times) / 1.5), log10(max(times) * 1.1)
    room = WIDTH - LEFT - RIGHT

    def length(took: float) -> float:
        return max(1.0, room * (log10(took) - low) / max(high - low, 1e-9))

    about = journal.identity
    rehearsal = "" if about.get("kind of run") == "full" else "REHEARSAL, small sizes: no figure means anything. "
    parts = [
        _text(10, 22, f"Milliseconds of one layer on {about.get('device', '?')} (logarithmic)", size=15),
        _text(10, 42, f"{rehearsal}In brackets: keys per query. torch {about.get('torch')}, {about.get('revision')}"),
    ]
    y = HEAD
    for group, rows in groups.items():
        parts.append(_text(10, y + 14, group, weight="bold"))
        y += ROW
        for name, took, keys, kind in rows:
            parts.append(_text(LEFT - 8, y + 13, f"{name} [{keys:.0f}]", anchor="end"))
            bar = length(took)
            parts.append(f'<rect x="{LEFT}" y="{y + 3}" width="{bar:.1f}" height="{ROW - 6}" fill="{COLOURS[kind]}"/>')
            parts.append(_text(LEFT + bar + 6, y + 13, f"{took:.3g} ms"))
            y += ROW
        y += 6
    height = y + 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


Row = tuple[str, float, float, str]
"""Name, milliseconds, keys per query, and a key of ``COLOURS``."""


def grouped(journal: Journal) -> dict[str, list[Row]]:
    """Bars by layer: dense attention of a size stands above its windows."""
    groups: dict[str, list[Row]] = {}
    for one in layers_in_order(journal.results):
        for name, run in (one.get("runs") or {}).items():
            windows = one.get("radius") is not None
            group = layer_name(one) if windows else f"{one['size']}, dense attention and other libraries"
            groups.setdefault(group, []).append(
                (name, max(run["median_ms"], 1e-6), run["keys_per_query"], _kind(name, windows))
            )
    if groups:
        groups[SOURCE] = [(one["name"], one["median_ms"], one["keys_per_query"], "published") for one in NATTEN_4K]
    return groups


def _kind(name: str, windows: bool) -> str:
    return "window" if windows else "dense" if name.startswith("sdpa") else "other"


def _text(x: float, y: float, text: str, **style: Any) -> str:
    names = {"size": "font-size", "weight": "font-weight", "anchor": "text-anchor"}
    more = "".join(f' {names[name]}="{value}"' for name, value in style.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="#202020"{more}>{escape(text)}</text>'
