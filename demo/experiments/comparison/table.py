"""The record of the trained comparison as Markdown: figures, the order beside the paper's, the rates tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..distil_table import SIGMA, thousandths
from ..guidance_table import line, table_head
from .ranks import PAPER, correlation, in_paper, mean_of, own_ranks, paper_ranks

DIGITS = 10
"""Of the model's SHA-256 in a title, as short names of files have."""

Row = dict[str, Any]

PICTURES: dict[str, Callable[[float], str]] = {
    "psnr": lambda value: f"{value:.1f}",
    "ssim": lambda value: f"{value:.3f}",
    "layout": lambda value: f"{value:.3f}",
    "found": lambda value: f"{100 * value:.0f}",
}
HEADS = {"psnr": "PSNR dB", "ssim": "SSIM", "layout": "layout", "found": "found, %"}


def tables(record: Row) -> str:
    """The tables of README.md."""
    return "\n\n".join(make(record) for make in (figures_table, order_table, correlation_table, trials_table))


def figures_table(record: Row) -> str:
    """Two rows for each attention, before and after training."""
    levels = list(record["rows"][0]["before"]["mse"])
    title = f"model {record['model'][:DIGITS]}, {record['side']} px, {record['steps']} steps"
    head = [title, "keys", "trained by", "rate", *(f"{SIGMA} {level}" for level in levels), "mean error"]
    lines = table_head(head + [HEADS[name] for name in PICTURES])
    for row in record["rows"]:
        keys = "" if row["keys"] is None else f"{row['keys']:.1f}"
        if not row["distilled"]:
            lines.append(line([row["attention"], keys, "as it is", "", *figures([row["before"]], levels)]))
        how = "flow matching, distillation" if row["distilled"] else "flow matching"
        lines.append(line([row["attention"], keys, how, f"{row['rate']:g}", *figures(row["after"], levels)]))
    return "\n".join(lines)


def figures(runs: Sequence[Row], levels: Sequence[str]) -> list[str]:
    """The cells of some seeds: means, and where they spread also the smallest and the largest."""
    cells = [thousandths(sum(run["mse"][level] for run in runs) / len(runs)) for level in levels]
    cells.append(spread([run["mean"] for run in runs], thousandths))
    return cells + [spread([run[name] for run in runs], form) for name, form in PICTURES.items()]


def spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    """Mean, and in brackets smallest and largest of several values."""
    mean = form(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} ({form(min(values))} to {form(max(values))})"


def order_table(record: Row) -> str:
    """All rows from the smallest error on; ranks are among the rows that the paper has, its figures with its ranks."""
    shared = in_paper(record)
    names = [row["name"] for row in shared]
    own, printed = own_ranks(shared), paper_ranks(shared)
    head = ["from the nearest on", "mean error", *(f"rank by {name}" for name in own)]
    lines = table_head(head + [f"paper's {name} (rank)" for name in printed])
    for row in sorted(record["rows"], key=lambda row: mean_of(row, "error")):
        cells = [row["name"], thousandths(mean_of(row, "error"))]
        if row["name"] in names:
            at, paper = names.index(row["name"]), PAPER[row["name"]]
            cells += [f"{found[at]:g}" for found in own.values()]
            values = zip((paper.fid, paper.clip_i, paper.dino), printed.values(), strict=True)
            cells += [f"{value:.2f} ({found[at]:g})" for value, found in values]
        else:
            cells += [""] * (len(own) + len(printed))
        lines.append(line(cells))
    return "\n".join(lines)


def correlation_table(record: Row) -> str:
    """Spearman's correlation of our ranks with the paper's; 1 is the same order."""
    shared = in_paper(record)
    own, printed = own_ranks(shared), paper_ranks(shared)
    lines = table_head([f"rank correlation, {len(shared)} rows", *(f"paper's {name}" for name in printed)])
    for name, found in own.items():
        lines.append(line([name, *(f"{correlation(found, theirs):.2f}" for theirs in printed.values())]))
    return "\n".join(lines)


def trials_table(record: Row) -> str:
    """Mean errors of the short trials by rate; the one that was taken is bold."""
    rates = list(record["rows"][0]["trials"])
    title = f"trials, {record['trial_scenes']} scenes, {record['trial_steps']} steps"
    lines = table_head([title, *(f"rate {rate}" for rate in rates)])
    for row in record["rows"]:
        cells = [row["name"]]
        for rate in rates:
            mean = row["trials"][rate]
            found = "diverged" if mean is None else thousandths(mean)
            cells.append(f"**{found}**" if float(rate) == row["rate"] else found)
        lines.append(line(cells))
    return "\n".join(lines)
