"""The order of the attentions, here and in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .plans import Row


@dataclass(frozen=True)
class Printed:
    """Figures of table 2 of the paper (arXiv 2412.16112), against the pictures of FLUX.1-dev.

    Attributes:
        fid: Smaller is nearer.
        clip_i, dino: Similarity, at most 100.
    """

    fid: float
    clip_i: float
    dino: float


PAPER: dict[str, Printed] = {
    Row("sigmoid").name: Printed(447.80, 41.34, 0.25),
    Row("linear").name: Printed(324.54, 51.37, 2.17),
    Row("PixArt-Sigma").name: Printed(30.64, 86.43, 71.45),
    Row("agent").name: Printed(69.85, 78.18, 56.09),
    Row("strided").name: Printed(24.88, 85.50, 70.72),
    Row("Swin").name: Printed(18.90, 85.72, 73.43),
    Row("CLEAR").name: Printed(15.53, 86.47, 74.36),
    Row("CLEAR", True).name: Printed(13.07, 88.56, 77.66),
}
"""By name of our row; CLEAR's is of radius 8. Neighbourhoods and pooled keys are not in that table."""

MEASURES = {"error": False, "PSNR": True, "SSIM": True, "layout": True}
"""Our measures, and whether more of it is nearer to dense attention."""

PRINTED = {"FID": False, "CLIP-I": True, "DINO": True}


def ranks(values: Sequence[float], more_is_nearer: bool) -> list[float]:
    """Rank of each value, 1 the nearest to dense attention; equal ones share the mean of their ranks."""
    found = [-value if more_is_nearer else value for value in values]
    return [1 + sum(other < own for other in found) + (sum(other == own for other in found) - 1) / 2 for own in found]


def correlation(ranks_a: Sequence[float], ranks_b: Sequence[float]) -> float:
    """Spearman's rank correlation, -1 to 1; nan if all ranks of a side are equal."""
    return torch.corrcoef(torch.tensor([list(ranks_a), list(ranks_b)], dtype=torch.float64))[0, 1].item()


def mean_of(row: dict[str, Any], measure: str) -> float:
    """Mean over the seeds of a record's row, by the name of a measure."""
    key = "mean" if measure == "error" else measure.lower()
    return sum(each[key] for each in row["after"]) / len(row["after"])


def in_paper(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a record that the paper has, too."""
    return [row for row in record["rows"] if row["name"] in PAPER]


def own_ranks(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Ranks among some rows of a record, by measure."""
    return {name: ranks([mean_of(row, name) for row in rows], more) for name, more in MEASURES.items()}


def paper_ranks(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """The paper's ranks among the same rows, by measure."""
    found = [PAPER[row["name"]] for row in rows]
    values = {"FID": [p.fid for p in found], "CLIP-I": [p.clip_i for p in found], "DINO": [p.dino for p in found]}
    return {name: ranks(values[name], more) for name, more in PRINTED.items()}
