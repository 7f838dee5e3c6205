"""How many times as fast a step is on several devices: a model on paper, from what one H100 took. Estimated.

It takes for granted that

- every rank sends at the link's rate, while all others do, and receives at the same time: cards that share a switch or
  the way to the processor's memory are slower;
- a part of the work takes its part of the time: of attention by its query-key pairs, of the rest by its tokens;
- nothing of the transfers is hidden behind computing, unless ``hidden`` says so;
- a step is its blocks: text encoders, VAE and sampler are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

from clear_core import ClearSpec, SequenceLayout, cost
from clear_core.families import FLUX1
from clear_core.layout import TOKEN_PIXELS
from clear_core.memory import Activations
from clear_core.parallel import heads_traffic, split_rows, strip_traffic

Way = Literal["strips", "heads"]

RECORD = Path(__file__).parents[1] / "records" / "h100.json"
TEXT = FLUX1.text_tokens
HEADS = FLUX1.width // FLUX1.head_dim
LAYERS = FLUX1.num_double + FLUX1.num_single


class Shape(TypedDict):
    """Of q, k and v, as the formulas for bytes ask for it."""

    heads: int
    head_dim: int
    element_bytes: int


FLUX: Shape = {"heads": HEADS, "head_dim": FLUX1.head_dim, "element_bytes": 2}

EXCHANGES: dict[Way, int] = {"strips": 4, "heads": 2}
"""Of one layer, one after the other at worst: border, text parts, their log-sum-exps, joined rows; there and back."""


class Link(NamedTuple):
    """A link between devices, as one of them sees it.

    Attributes:
        name: As the tables call it.
        rate: 10**9 bytes that one device sends in a second, and receives at the same time.
        latency: Microseconds that an exchange takes, however small.
    """

    name: str
    rate: float
    latency: float


LINKS = (
    Link("NVLink, 300 GB/s", 300, 10),
    Link("PCIe 5, peer access, 45 GB/s", 45, 20),
    Link("PCIe 4, peer access, 20 GB/s", 20, 20),
    Link("PCIe 4 by main memory, 10 GB/s", 10, 40),
)
"""Assumed, about two thirds of what the makers state; GeForce cards have no peer access."""


@dataclass(frozen=True)
class Base:
    """What one device takes.

    Attributes:
        attention: Milliseconds of one layer's attention, by side of the picture in pixels and radius.
        per_token: Milliseconds of all else that a block does, for one token.
    """

    attention: Mapping[tuple[int, int], float]
    per_token: float

    @classmethod
    def measured(cls, record: Path = RECORD, run: str = "triton") -> Base:
        """By the record of an H100: attention of each size, and what its steps took beside attention."""
        found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))["results"]
        plain = [one for one in found.values() if one.get("down_factor") == 1 and run in one.get("runs", {})]
        attention = {
            (one["grid"][0] * TOKEN_PIXELS, one["radius"]): one["runs"][run]["median_ms"]
            for one in plain
            if one["section"] == "One layer"
        }
        beside = tokens = 0.0
        for one in plain:
            if one["section"] == "A whole step":
                side = one["grid"][0] * TOKEN_PIXELS
                beside += one["runs"][run]["step_ms"] - LAYERS * attention[side, one["radius"]]
                tokens += LAYERS * layout_of(side).length
        return cls(attention, beside / tokens)


def layout_of(side: int) -> SequenceLayout:
    """A square picture's sequence, side in pixels, with FLUX.1's text."""
    rows = side // TOKEN_PIXELS
    return SequenceLayout(TEXT, (rows, rows))


def speed_up(
    side: int, radius: int, ranks: int, link: Link, way: Way, base: Base, *, slower: float = 1, hidden: float = 0
) -> float | None:
    """How many times as fast a step is as on one device.

    Args:
        side: Of a square picture in pixels; one that ``base`` knows.
        radius: Of the windows in tokens; the same.
        ranks: Number of devices, 1 or more.
        link: Between them; a rate of 0 gives 0.
        way: Strips of rows, or heads dealt out.
        base: What one device takes.
        slower: How many times as long as there a device computes.
        hidden: Share of the transfers that is hidden behind computing, 0 to 1.

    Returns:
        None if the heads cannot be dealt out.
    """
    layout, attention = layout_of(side), base.attention[side, radius]
    if way == "heads" and HEADS % ranks:
        return None
    one = attention + base.per_token * layout.length
    work = strips_work if way == "strips" else heads_work
    slowest = max(
        slower * (attention * pairs + base.per_token * tokens) + (1 - hidden) * transfer_ms(sent, link, way, ranks)
        for pairs, tokens, sent in work(layout, ClearSpec(radius), ranks)
    )
    return slower * one / slowest


def transfer_ms(sent: int, link: Link, way: Way, ranks: int) -> float:
    """Milliseconds that the exchanges of one layer take.

    Args:
        sent: Bytes that the rank sends.
    """
    if ranks == 1:
        return 0
    return (sent / (link.rate * 1e6) if link.rate else math.inf) + EXCHANGES[way] * link.latency / 1e3


def strips_work(layout: SequenceLayout, spec: ClearSpec, ranks: int) -> list[tuple[float, int, int]]:
    """By rank: share of attention's pairs, tokens of its linear layers, and bytes sent in one layer."""
    whole = cost.clear_pairs(layout, spec)
    found: list[tuple[float, int, int]] = []
    for own, traffic in zip(split_rows(layout.grid[0], ranks), strip_traffic(layout, spec, ranks, **FLUX), strict=True):
        tokens = len(own) * layout.grid[1]
        # Every rank holds the text, but its queries see each rank's keys there alone.
        pairs = cost.clear_pairs(layout, spec, own) - layout.text * (layout.image - tokens)
        found.append((pairs / whole, layout.text + tokens, sum(traffic)))
    return found


def heads_work(layout: SequenceLayout, spec: ClearSpec, ranks: int) -> list[tuple[float, int, int]]:
    """The same if heads are dealt out; the windows do not matter, and all ranks do the same."""
    sent = heads_traffic(layout.length, ranks, **FLUX) // ranks
    return [(1 / ranks, -(-layout.length // ranks), sent)]


def tensor_parallel_traffic(layout: SequenceLayout, ranks: int) -> float:
    """Bytes that each rank sends in one layer, on average over FLUX.1's, with tensor parallelism.

    Each output that was summed over a cut input is a ring's all-reduce of a hidden state: after attention and after the
    MLP in a double block, after both together in a single one.
    """
    states = (2 * FLUX1.num_double + FLUX1.num_single) / LAYERS
    return 2 * states * (ranks - 1) / ranks * Activations().hidden_bytes(layout.length)
