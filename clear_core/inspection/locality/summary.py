"""What a record of locality comes to: means over pictures, quantiles over heads, costs by block."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...dense_blocks import BlockId, parse_dense_blocks
from ...spec import ClearSpec
from ..units import percent

Record = dict[str, Any]

QUANTILES = (0.1, 0.5, 0.9)


def mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def levels_of(record: Record) -> list[float]:
    """Noise levels, rising."""
    return sorted(record["settings"]["levels"])


def attention_names(record: Record) -> list[str]:
    """Names of the attentions in the order of the blocks."""
    return list(record["mass"][0]["values"])


def local_shares(record: Record, level: float | None = None) -> dict[str, Tensor]:
    """By attention: (heads, radii) float64, the share of the mass on the image that is closer than each radius.

    Means over the pictures, and over all noise levels unless one is named.
    """
    found: dict[str, Tensor] = {}
    for name in attention_names(record):
        rows = [row["values"][name] for row in record["mass"] if level is None or row["level"] == level]
        within = torch.tensor([row["within"] for row in rows], dtype=torch.float64).mean(0)
        elsewhere = torch.tensor([[row["text"], row["reference"]] for row in rows], dtype=torch.float64)
        image = (1 - elsewhere.sum(1)).mean(0)
        found[name] = within / image.clamp(min=1e-12)[:, None]
    return found


def text_shares(record: Record, level: float | None = None) -> dict[str, float]:
    """By attention: the share of all mass that lies on text, mean over heads, pictures and noise levels."""
    return {
        name: mean(
            mean(row["values"][name]["text"]) for row in record["mass"] if level is None or row["level"] == level
        )
        for name in attention_names(record)
    }


def head_quantiles(record: Record, level: float | None = None) -> Tensor:
    """(quantiles, radii): :data:`QUANTILES` over all heads of all attentions of :func:`local_shares`."""
    heads = torch.cat(list(local_shares(record, level).values()))
    return torch.quantile(heads, torch.tensor(QUANTILES, dtype=torch.float64), dim=0)


def distance_errors(record: Record, side: str, level: float | None = None) -> list[float]:
    """The error for each limit; means as in :func:`local_shares`."""
    rows = [row["values"][side] for row in record["distances"] if level is None or row["level"] == level]
    return [mean(values) for values in zip(*rows, strict=True)]


def window_errors(record: Record, level: float | None = None) -> dict[str, float]:
    """By block: the error if it alone has windows; means as in :func:`local_shares`."""
    rows = [row["values"] for row in record["windows"] if level is None or row["level"] == level]
    return {name: mean(row[name] for row in rows) for name in rows[0]}


def rounding_floor(record: Record) -> float:
    """The error that rounding alone makes, mean over pictures and noise levels; 0 if it was not measured."""
    return mean(row["values"] for row in record.get("floor", [{"values": 0.0}]))


def block_costs(record: Record) -> tuple[dict[BlockId, float], str]:
    """What windows cost in each block, and by what that was judged.

    By "windows" if their errors were measured, less :func:`rounding_floor` and not below 0. Else by "mass", the share
    on the image's tokens that the window leaves out, at the largest measured radius up to the window's.
    """
    if "windows" in record:
        floor = rounding_floor(record)
        errors = window_errors(record).items()
        return {block_of(name, record): max(error - floor, 0.0) for name, error in errors}, "windows"
    place = radius_place(record)
    costs: dict[BlockId, float] = {}
    for name, shares in local_shares(record).items():
        block = block_of(name, record)
        # Of two attentions in a block the wider one counts.
        costs[block] = max(costs.get(block, 0.0), 1 - shares[:, place].mean().item())
    return costs, "mass"


def radius_place(record: Record) -> int:
    """Place among the radii of the largest one that is not larger than the window's; 0 if all are larger."""
    radius = spec_of(record).radius
    return max((place for place, each in enumerate(record["settings"]["radii"]) if each <= radius), default=0)


def spec_of(record: Record) -> ClearSpec:
    """The windows whose cost was measured."""
    return ClearSpec(**record["settings"]["spec"])


def block_of(name: str, record: Record) -> BlockId:
    """The block of an attention's name."""
    (block,) = parse_dense_blocks(name.partition(" ")[0], record["double"], record["single"])
    return block


def proposal_sentence(record: Record) -> str:
    """The proposal, to be read and copied."""
    found = record["proposal"]
    if not found["dense_blocks"]:
        return "No block is proposed to stay dense."
    before, after = (percent(found[name]) for name in ("error_all_windows", "error_with_dense_blocks"))
    judged = "" if found["by"] == "windows" else " (chosen by attention mass alone)"
    return (
        f'Set dense_blocks to "{found["dense_blocks"]}"{judged}: with {spec_of(record)} in all blocks the prediction '
        f"differs from dense attention's by {before}, with these blocks dense by {after} (squared distance over "
        f"squared length); query-key pairs rise from {percent(found['pairs_all_windows'])} to "
        f"{percent(found['pairs_with_dense_blocks'])} of dense attention's."
    )
