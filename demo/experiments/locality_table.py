"""The record of locality as Markdown: blocks below each other for each size, and the clipped distances."""

from __future__ import annotations

from typing import Any

from .guidance_table import line, table_head


def tables(record: dict[str, Any]) -> str:
    """The tables of README.md."""
    return "\n\n".join([blocks_table(record), distances_table(record)])


def blocks_table(record: dict[str, Any]) -> str:
    """A row for each size and block; the proposed block is bold."""
    radii = sorted({radius for part in record["sides"] for radius in part["radii"][:-1]})
    head = ["pictures", "block", *(f"within {radius}" for radius in radii), "text", "windows here", "dense here"]
    lines = table_head(head)
    for part in record["sides"]:
        levels = ", ".join(f"{level:g}" for level in part["levels"])
        scenes = f"{part['scenes']} scene{'s' if part['scenes'] > 1 else ''}"
        title = f"{part['side']} px, {scenes}, σ {levels}, radius {part['radius']}"
        for name, shares in part["within"].items():
            by_radius = dict(zip(part["radii"], shares, strict=True))
            cells = [percent(by_radius[radius]) if radius in by_radius else "" for radius in radii]
            cells += [percent(part["text"][name]), small(part["windows"][name]), small(part["one_dense"][name])]
            proposed = name == part["proposal"]["dense_blocks"]
            lines.append(line([title, f"**{name}**" if proposed else name, *cells]))
        everywhere = small(part["proposal"]["error_all_windows"])
        lines.append(line([title, "all", *[""] * (len(radii) + 1), everywhere, ""]))
    return "\n".join(lines)


def distances_table(record: dict[str, Any]) -> str:
    """A row for each size and side of the clip."""
    limits = sorted({limit for part in record["sides"] for limit in part["limits"]})
    lines = table_head(["pictures", "moved", *(f"{limit} tokens" if limit > 1 else "1 token" for limit in limits)])
    for part in record["sides"]:
        for side, words in (("far", "far tokens near"), ("near", "near tokens away")):
            by_limit = dict(zip(part["limits"], part[side], strict=True))
            cells = [small(by_limit[limit]) if limit in by_limit else "" for limit in limits]
            lines.append(line([f"{part['side']} px", words, *cells]))
    return "\n".join(lines)


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def small(share: float) -> str:
    return f"{100 * share:.2f} %"
