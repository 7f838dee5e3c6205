"""One case: attention of one layer on one device, in strips, and with its heads dealt out, on all ranks at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.layout import TOKEN_PIXELS
from clear_core.parallel import Peers, attend_by_heads, clear_attention_strip, heads_traffic, split_rows, strip_traffic

from ..attention import TOLERANCE
from .estimate import Shape, Way
from .peers import RecordedPeers, SilentPeers
from .rounds import sum_of_ranks, together, worst_of_ranks

ONE = "one device"
Run = Callable[[Peers], Tensor]


@dataclass(frozen=True)
class Case:
    """What is computed.

    Attributes:
        layout: Of the whole picture; without references.
        spec: Window and pooling.
        heads, head_dim, dtype: Of q, k and v.
        backend: For the windows.
    """

    layout: SequenceLayout
    spec: ClearSpec
    heads: int
    head_dim: int
    dtype: torch.dtype
    backend: str = "auto"

    @property
    def shape(self) -> Shape:
        """What the formulas for bytes ask for."""
        return {"heads": self.heads, "head_dim": self.head_dim, "element_bytes": self.dtype.itemsize}

    def parts(self, way: Way, ranks: int) -> list[list[slice]]:
        """By rank: positions of the text and of the image tokens that it holds."""
        text, height, width = self.layout.text, *self.layout.grid
        if way == "strips":
            rows = split_rows(height, ranks, multiple=self.spec.down_factor)
            return [[slice(0, text), slice(text + own.start * width, text + own.stop * width)] for own in rows]
        shares = zip(split_rows(text, ranks), split_rows(self.layout.image, ranks), strict=True)
        return [[slice(a.start, a.stop), slice(text + b.start, text + b.stop)] for a, b in shares]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Of the whole picture, on one device."""
        out = clear_attention(q, k, v, grid=self.layout.grid, spec=self.spec, backend=self.backend)
        assert isinstance(out, Tensor)  # no lse was asked for
        return out

    def run(self, way: Way, ranks: int, q: Tensor, k: Tensor, v: Tensor) -> Run:
        """The call of one rank, given its part."""
        if way == "strips":
            return partial(_strip, self, q, k, v)
        parts = self.parts(way, ranks)
        sizes = [[one.stop - one.start for one in part] for part in parts]
        texts, tokens = [text for text, _ in sizes], [sum(both) for both in sizes]
        return lambda peers: attend_by_heads(self.attend, q, k, v, peers=peers, text_tokens=texts, tokens=tokens)

    def formula(self, way: Way, ranks: int) -> int:
        """Bytes that all ranks together send."""
        if way == "strips":
            return sum(map(sum, strip_traffic(self.layout, self.spec, ranks, **self.shape)))
        return heads_traffic(self.layout.length, ranks, **self.shape)


def _strip(case: Case, q: Tensor, k: Tensor, v: Tensor, peers: Peers) -> Tensor:
    return clear_attention_strip(q, k, v, peers=peers, grid=case.layout.grid, spec=case.spec, backend=case.backend)


class WrongResultError(RuntimeError):
    """A way computes something else than one device, or sends other bytes than the formula says."""


def measure(peers: Peers, device: torch.device, case: Case, ways: Sequence[Way], rounds: int) -> dict[str, Any]:
    """One case, called by all ranks; the result is the same on all of them.

    Args:
        peers: Two ranks or more.
        device: This rank's own.
        ways: To be measured; one that cannot be is named with its reason.
        rounds: Of which a median is taken.

    Raises:
        WrongResultError: On all ranks.
    """
    q, k, v = whole = _draw(case, device) if peers.rank == 0 else (None, None, None)
    expected = None if q is None or k is None or v is None else case.attend(q, k, v)
    # Rank 0 alone computes the whole; the others wait.
    functions: dict[str, Callable[[], Any]] = {ONE: partial(case.attend, *whole) if q is not None else _nothing}
    found: dict[str, Any] = {}
    for way in ways:
        if way == "heads" and case.heads % peers.size:
            found[way] = {"skipped": f"{case.heads} heads cannot be dealt out to {peers.size} ranks"}
            continue
        own = [_dealt(one, peers, device, case, way) for one in whole]
        run = case.run(way, peers.size, *own)
        found[way] = _checked(run, _dealt(expected, peers, device, case, way), peers, device, case, way)
        recorded, silent = RecordedPeers(peers), SilentPeers(peers.rank, peers.size)
        run(recorded)
        run(silent)
        functions |= {
            way: partial(run, peers),
            f"{way}, computing": partial(run, silent),
            f"{way}, transfers": recorded.replay,
        }
    del q, k, v, whole, expected  # what the functions do not hold is not needed any more
    seconds = together(functions, peers, device, rounds)
    for way in ways:
        if "skipped" not in found[way]:
            both, computing, transfers = (seconds[name] for name in (way, f"{way}, computing", f"{way}, transfers"))
            found[way] |= {
                "ms": _ms(both),
                "computing_ms": _ms(computing),
                "transfer_ms": _ms(transfers),
                "hidden": round(median(map(hidden_share, both, computing, transfers)), 3),
                "speed_up": round(median(a / b for a, b in zip(seconds[ONE], both, strict=True)), 3),
            }
    return {
        "kind": "case",
        "px": [side * TOKEN_PIXELS for side in case.layout.grid],
        "ranks": peers.size,
        "radius": case.spec.radius,
        "down_factor": case.spec.down_factor,
        "one_device_ms": _ms(seconds[ONE]),
        "ways": found,
    }


def hidden_share(both: float, computing: float, transfers: float) -> float:
    """Share of the transfers' time that computing hides, 0 to 1.

    Args:
        both: Seconds of the whole call.
        computing: The same with nothing sent.
        transfers: The same with nothing computed.
    """
    return min(1.0, max(0.0, 1 - (both - computing) / transfers))


def _ms(seconds: list[float]) -> float:
    return round(median(seconds) * 1e3, 3)


def _nothing() -> None:
    """What other ranks do while one computes."""


def _draw(case: Case, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    shape = 1, case.heads, case.layout.length, case.head_dim
    q, k, v = (torch.randn(shape, generator=generator, device=device, dtype=case.dtype) for _ in range(3))
    return q, k, v


def _dealt(whole: Tensor | None, peers: Peers, device: torch.device, case: Case, way: Way) -> Tensor:
    """The own part of a sequence that rank 0 holds: not every device draws the same numbers from one seed."""
    parts = case.parts(way, peers.size)
    sends: dict[int, Tensor] = {}
    if whole is not None:
        sends = {rank: torch.cat([whole[:, :, one] for one in part], dim=2) for rank, part in enumerate(parts)}
        own = sends.pop(peers.rank)
        peers.exchange(sends, {}, own).wait()
        return own
    tokens = sum(one.stop - one.start for one in parts[peers.rank])
    like = torch.empty(0, device=device, dtype=case.dtype)
    return peers.exchange({}, {0: (1, case.heads, tokens, case.head_dim)}, like).wait()[0]


def _checked(run: Run, expected: Tensor, peers: Peers, device: torch.device, case: Case, way: Way) -> dict[str, Any]:
    """Bytes and error of one call; all ranks refuse together what does not fit."""
    before = peers.bytes_sent
    out = run(peers)
    sent = sum_of_ranks(peers.bytes_sent - before, peers, device)
    largest = expected.float().abs().max().clamp(min=1)
    off = worst_of_ranks([float((out.float() - expected.float()).abs().max() / largest)], peers, device)[0]
    formula = case.formula(way, peers.size)
    what = f"{way} of {case.layout.grid}, {case.spec}, on {peers.size} ranks"
    if not off <= TOLERANCE[case.dtype]:
        raise WrongResultError(f"{what} is off by {off:.2g} from one device; nothing was timed.")
    if sent != formula:
        raise WrongResultError(f"{what} sent {sent} bytes, but the formula says {formula}; nothing was timed.")
    return {"error": off, "bytes_sent": sent, "bytes_by_formula": formula}
