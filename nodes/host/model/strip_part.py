"""A call of the model that computes one strip of a picture, while other devices compute the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from comfy.model_management import throw_exception_if_processing_interrupted
from torch import Tensor

from ....clear_core.effective import Effective
from ....clear_core.layout import SequenceLayout
from ....clear_core.parallel import Peers, PeersError, ThreadPeers, clear_attention_strip, split_rows
from ....clear_core.parallel.gathered import attend_to_gathered
from ....clear_core.sdedit import Tile
from .devices import Device, Devices
from .tile_frame import FramePart

Result = TypeVar("Result")

KEY = "clear_strip"
"""Key of a :class:`StripPart` in ``transformer_options``; absent if one device computes the whole call."""


class StripError(ValueError):
    """Something in a call does not allow it to be cut into strips."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"{reason}, so the picture cannot be cut into strips for several devices; take MultiGPU CFG Split off this "
            "model, or the node that changes its attention."
        )


@dataclass(frozen=True)
class StripPart:
    """The own strip of a call, and the devices that compute the others.

    Attributes:
        peers: The ranks, as this device sees them.
        grid: (h, w) of the whole call in tokens.
        strips: The rows of each rank.
    """

    peers: Peers
    grid: tuple[int, int]
    strips: tuple[range, ...]

    @property
    def own(self) -> range:
        """The own rows."""
        return self.strips[self.peers.rank]

    def place(self, call: FramePart | None) -> FramePart:
        """The place of the strip in the frame, of which the whole call may be a part."""
        outer = call or FramePart(self.grid, Tile(0, 0, *self.grid))
        tile = Tile(outer.tile.y + self.own.start, outer.tile.x, len(self.own), self.grid[1])
        return FramePart(outer.grid, tile, outer.run)

    def whole(self, layout: SequenceLayout) -> SequenceLayout:
        """The sequence of the whole call, of which ``layout`` is the own part."""
        return replace(layout, grid=self.grid)

    def windows(
        self, q: Tensor, k: Tensor, v: Tensor, effective: Effective, reference: int, weight: Tensor | None
    ) -> Tensor:
        """Windowed attention (B, heads, L, D) of the own part.

        Args:
            q, k, v: (B, heads, L, D) of text, the own rows and ``reference`` tokens.
            effective: What the settings come to for the whole call.
            weight: (d, d) pooling weights, or None for the mean.
        """
        return clear_attention_strip(
            q,
            k,
            v,
            peers=self.peers,
            grid=self.grid,
            spec=effective.spec,
            spatial_weight=weight,
            scale=effective.scale_for(q.shape[-1]),
            reference_tokens=reference,
            backend=effective.backend,
            on_chunk=throw_exception_if_processing_interrupted,
        )

    def dense(
        self,
        attend: Callable[[Tensor, Tensor, Tensor], Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        reference: int,
        by_heads: bool,
    ) -> Tensor:
        """Dense attention of the own part, by the host's or another node's function; arguments as of :meth:`windows`.

        Args:
            by_heads: Whether ``attend`` gives (B, heads, L, D) rather than (B, L, heads * D).
        """
        throw_exception_if_processing_interrupted()
        return attend_to_gathered(
            attend,
            q,
            k,
            v,
            peers=self.peers,
            strips=self.strips,
            width=self.grid[1],
            reference_tokens=reference,
            dim=2 if by_heads else 1,
        )


def count_of(devices: Devices, rows: int, multiple: int) -> int:
    """Number of strips of so many rows: one for each device, if there are so many multiples."""
    return min(len(devices.each), -(-rows // multiple))


def in_strips(
    devices: Devices, grid: tuple[int, int], multiple: int, work: Callable[[Device, StripPart], Result]
) -> list[Result]:
    """The results of ``work`` on all strips of a call, each on a device of its own, from top to bottom.

    Args:
        grid: (h, w) of the call in tokens.
        multiple: Strips are cut at multiples of it, in rows.
    """
    count = count_of(devices, grid[0], multiple)
    strips, peers = split_rows(grid[0], count, multiple), ThreadPeers.make(count)

    def one(device: Device) -> Result:
        own = peers[device.rank]
        try:
            result = work(device, StripPart(own, grid, strips))
            own.end()
            return result
        except BaseException as error:
            own.abort(error)
            raise

    try:
        return devices.run(one, count)
    except PeersError as error:
        raise StripError("the devices did not make the same calls of attention") from error
