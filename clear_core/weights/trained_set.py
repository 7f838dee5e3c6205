"""What is trained in each family that weights can be distilled for: one table, by the family's name.

Every family trains the image stream's projections of its double blocks, and q, k and v of its single blocks. The table
says in what they differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .errors import ClearFileError, printable
from .naming import (
    COMFYUI,
    DIFFUSERS,
    ENDS,
    FLUX2_DIFFUSERS,
    SD3_COMFYUI,
    STREAMS,
    TRAINED,
    NamingScheme,
    Stream,
    trained_names,
)

FIRST = "FLUX.1"
"""The family of a file that states none, as the published ones."""


@dataclass(frozen=True, kw_only=True)
class TrainedSet:
    """What is trained in a family.

    Attributes:
        family: Its name in the table of families.
        streams: The kinds of blocks that it has.
        has_bias: Whether the trained layers have biases. A file holds all of them or, without, none.
        schemes: The ways to name its tensors; the first one is diffusers'.
    """

    family: str
    streams: tuple[Stream, ...] = STREAMS
    has_bias: bool = True
    schemes: tuple[NamingScheme, ...] = (DIFFUSERS, COMFYUI)

    @property
    def ends(self) -> tuple[str, ...]:
        """Endings of the names of a layer's tensors."""
        return ENDS if self.has_bias else ENDS[:1]

    @property
    def fused(self) -> dict[Stream, str]:
        """Layer of a diffusers model, by stream, whose first 3 * width rows are q, k and v; a model holds no others."""
        return dict(self.schemes[0].longer)

    def names(self, num_double: int, num_single: int) -> Iterator[str]:
        """Canonical names of all trained tensors of a model, without the spatial weights."""
        return trained_names(num_double, num_single, self.has_bias)

    def count(self, num_double: int, num_single: int) -> int:
        """Length of :meth:`names`, without counting it out: a file may state absurd numbers."""
        blocks = zip(STREAMS, (num_double, num_single), strict=True)
        return sum(number * len(TRAINED[stream]) for stream, number in blocks) * len(self.ends)


FLUX1_SET = TrainedSet(family=FIRST)

TRAINED_SETS = {
    each.family: each
    for each in (
        FLUX1_SET,
        TrainedSet(family="Chroma"),
        TrainedSet(family="FLUX.2", has_bias=False, schemes=(FLUX2_DIFFUSERS, COMFYUI)),
        # ComfyUI names Qwen-Image's tensors as diffusers does.
        TrainedSet(family="Qwen-Image", streams=("double",), schemes=(DIFFUSERS,)),
        TrainedSet(family="SD3.5", streams=("double",), schemes=(DIFFUSERS, SD3_COMFYUI)),
    )
}


def trained_set(family: str, name: str) -> TrainedSet:
    """The row of a family.

    Args:
        family: Its name, as a file's header states it.
        name: Of the file, for the message.

    Raises:
        ClearFileError: Weights cannot be distilled for such a family.
    """
    found = TRAINED_SETS.get(family)
    if found is None:
        known = ", ".join(TRAINED_SETS)
        raise ClearFileError(
            f"{name} was distilled for {printable(family)!r}, a family that this version has no weights for; expected "
            f"clear.family to be one of {known}."
        )
    return found
