"""A record of locality as one HTML page without any file beside it, and as one picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from torch import Tensor

from ..canvas import CIRCLE, INK, MUTED, OVERSAMPLING, PAPER, Color
from ..page import BODY, HEADING, MARGIN, SMALL, TITLE, WIDTH, Page
from ..page import finished as finished_page
from ..units import percent
from .figures import draw_all
from .summary import (
    QUANTILES,
    Record,
    distance_errors,
    head_quantiles,
    levels_of,
    proposal_sentence,
    rounding_floor,
    window_errors,
)

if TYPE_CHECKING:
    from PIL import Image

FIGURE_WIDTH = WIDTH - 2 * MARGIN


def html_page(record: Record, maps: Mapping[str, Tensor]) -> str:
    """The page."""
    parts = [f"<h1>{escape(title_of(record))}</h1>", f"<p class=quiet>{escape(origin_of(record))}</p>"]
    if floor := rounding_floor(record):
        parts.append(f"<p class=quiet>Errors below {percent(floor)} are rounding.</p>")
    if "proposal" in record:
        parts.append(f"<p class=proposal>{escape(proposal_sentence(record))}</p>")
    for title, words, picture in draw_all(record, maps, FIGURE_WIDTH):
        parts += [f"<h2>{escape(title)}</h2>", f"<p>{escape(words)}</p>", _image(picture, title)]
    for title, head, rows in tables_of(record):
        parts += [f"<h2>{escape(title)}</h2>", _table(head, rows)]
    versions = " · ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
    parts.append(f"<p class=quiet>{escape(versions)}</p>")
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{escape(title_of(record))}</title>\n' + (
        f"<style>{_style()}</style>\n<body>\n{body}\n</body></html>\n"
    )


def draw_sheet(record: Record, maps: Mapping[str, Tensor]) -> Image.Image:
    """The figures below each other, 1640 px wide."""
    page = Page()
    page.text(title_of(record), TITLE, INK)
    page.text(origin_of(record), BODY, MUTED)
    for title, words, picture in draw_all(record, maps, FIGURE_WIDTH):
        page.gap(26)
        page.text(title, HEADING, INK)
        page.text(words, SMALL, MUTED)
        page.gap(12)
        large = picture.resize((picture.width * OVERSAMPLING, picture.height * OVERSAMPLING))
        page.image.paste(large, (MARGIN * OVERSAMPLING, round(page.y) * OVERSAMPLING))
        page.gap(picture.height)
    page.gap(20)
    if "proposal" in record:
        page.text(proposal_sentence(record), BODY, INK)
        page.gap(12)
    return finished_page(page, record.get("versions", {}))


def title_of(record: Record) -> str:
    return f"Where {record.get('model', record['family'])} looks"


def origin_of(record: Record) -> str:
    """What was measured, in one sentence."""
    height, width = record["grid"]
    settings, pictures = record["settings"], f"{record['pictures']} picture{'s' if record['pictures'] > 1 else ''}"
    queries = settings["queries"]
    sample = f", {queries} of its queries by seed {settings['seed']}" if 0 < queries < height * width else ""
    return (
        f"{record['family']} on {pictures} of {height} x {width} tokens{sample}; "
        f"noise levels {', '.join(f'{level:g}' for level in levels_of(record))}."
    )


def tables_of(record: Record) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, heading, rows) of the numbers behind the figures."""
    levels = levels_of(record)
    tables: list[tuple[str, list[str], list[list[str]]]] = []
    if "mass" in record:
        rows: list[list[str]] = []
        for level in levels:
            for share, values in zip(QUANTILES, head_quantiles(record, level).tolist(), strict=True):
                rows.append([f"{level:g}", f"{100 * share:.0f} %", *map(percent, values)])
        radii = [f"radius {radius}" for radius in record["settings"]["radii"]]
        tables.append(("Share within a radius, over all heads", ["noise level", "quantile of heads", *radii], rows))
    if "distances" in record:
        limits = [f"{limit} tokens" for limit in record["settings"]["limits"]]
        rows = [
            [f"{level:g}", side, *map(percent, distance_errors(record, side, level))]
            for level in levels
            for side in ("far", "near")
        ]
        tables.append(("Error with clipped distances", ["noise level", "clipped", *limits], rows))
    if "windows" in record:
        by_level = [window_errors(record, level) for level in levels]
        rows = [[name, *(percent(each[name]) for each in by_level), percent(error)] for name, error in _sorted(record)]
        head = ["block", *(f"noise level {level:g}" for level in levels), "mean"]
        tables.append(("Error with windows in one block alone", head, rows))
    return tables


def _sorted(record: Record) -> list[tuple[str, float]]:
    return sorted(window_errors(record).items(), key=lambda pair: -pair[1])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(kind: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"

    return "\n".join(["<table>", line("th", head), *(line("td", row) for row in rows), "</table>"])


def _image(picture: Image.Image, title: str) -> str:
    from PIL.Image import Quantize

    kept = io.BytesIO()
    picture.quantize(128, Quantize.FASTOCTREE).save(kept, "PNG", optimize=True)
    data = base64.b64encode(kept.getvalue()).decode()
    return f'<img width="{picture.width}" alt="{escape(title)}" src="data:image/png;base64,{data}">'


def _style() -> str:
    def css(color: Color) -> str:
        return "rgb({}, {}, {})".format(*color)

    return (
        f"body {{ max-width: {FIGURE_WIDTH}px; margin: 2em auto; padding: 0 1em; background: {css(PAPER)}; "
        f"color: {css(INK)}; font-family: sans-serif; line-height: 1.45 }} img {{ max-width: 100% }} "
        f".quiet {{ color: {css(MUTED)} }} .proposal {{ border-left: 4px solid {css(CIRCLE)}; padding-left: 1em }} "
        "table { border-collapse: collapse } td, th { padding: 0.2em 0.9em; text-align: right }"
    )
