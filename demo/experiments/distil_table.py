"""The record of distillation as Markdown: errors before and after for each model, the rates tried, a short table."""

from __future__ import annotations

from typing import Any

from .guidance_table import line, table_head

WHOLE = "whole weights"
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"


def tables(record: dict[str, Any]) -> str:
    """The tables of README.md."""
    parts = [subject_table(part, record) for part in record["subjects"]]
    return "\n\n".join([*parts, trials_table(record), teacher_table(record["small_flux2"])])


def subject_table(part: dict[str, Any], record: dict[str, Any]) -> str:
    """A row for each window and method; the share of the gain where whole weights were trained, too."""
    rows, levels = part["rows"], list(part["rows"][0]["after"])
    title = f"{part['subject']}, {part['side']} px, {record['scenes']} scenes, {record['steps']} steps"
    found = shares(rows)
    compared = any(share is not None for share in found)
    head = [title, "radius", "numbers", "rate", *(f"{SIGMA} {level}" for level in levels), "before", "after"]
    lines = table_head(head + ["share of the gain"] * compared)
    for row, share in zip(rows, found, strict=True):
        cells = [row["method"], str(row["radius"]), f"{row['trained']:,}", f"{row['rate']:g}"]
        cells += [f"{thousandths(row['before'][level])} → {thousandths(row['after'][level])}" for level in levels]
        cells += [thousandths(row["mean_before"]), thousandths(row["mean_after"])]
        lines.append(line(cells + [percent(share)] * compared))
    return "\n".join(lines)


def trials_table(record: dict[str, Any]) -> str:
    """Mean errors of the short trials, by rate; the one that was taken is bold."""
    rates = sorted(
        {rate for part in record["subjects"] for trial in part["trials"] for rate in trial["means"]}, key=float
    )
    title = f"trials, {record['trial_scenes']} scenes, {record['trial_steps']} steps"
    lines = table_head([title, "radius", *(f"rate {rate}" for rate in rates)])
    for part in record["subjects"]:
        for trial in part["trials"]:
            cells = [f"{part['subject']}, {trial['method']}", str(trial["radius"])]
            for rate in rates:
                found = thousandths(trial["means"][rate]) if rate in trial["means"] else ""
                cells.append(f"**{found}**" if float(rate) == trial["taken"] else found)
            lines.append(line(cells))
    return "\n".join(lines)


def teacher_table(teacher: dict[str, Any]) -> str:
    """The small FLUX.2 against the drawn scenes."""
    levels = list(teacher["flow_mse"])
    title = f"small FLUX.2 as it was trained, {teacher['side']} px, {teacher['scenes']} scenes"
    lines = table_head([title, *(f"{SIGMA} {level}" for level in levels), "captions told apart"])
    figures = [thousandths(teacher["flow_mse"][level]) for level in levels]
    lines.append(line([f"{teacher['steps']} steps", *figures, f"{100 * teacher['caption_match']:.0f} %"]))
    return "\n".join(lines)


def short_rows(record: dict[str, Any]) -> list[str]:
    """The short table of docs/training.md: mean errors alone."""
    lines = table_head(["model", "radius", "trained", "numbers", "error before", "after", "share of the gain"])
    for part in record["subjects"]:
        for row, share in zip(part["rows"], shares(part["rows"]), strict=True):
            figures = [f"{row['trained']:,}", thousandths(row["mean_before"]), thousandths(row["mean_after"])]
            lines.append(line([part["subject"], str(row["radius"]), row["method"], *figures, percent(share)]))
    return lines


def gain(row: dict[str, Any]) -> float:
    """What a distillation takes from the mean error."""
    return row["mean_before"] - row["mean_after"]


def shares(rows: list[dict[str, Any]]) -> list[float | None]:
    """Each row's gain over that of whole weights at the same radius; None without whole weights."""
    whole = {row["radius"]: gain(row) for row in rows if row["method"] == WHOLE}
    return [gain(row) / whole[row["radius"]] if row["radius"] in whole else None for row in rows]


def thousandths(value: float) -> str:
    return f"{1000 * value:.2f}"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"
