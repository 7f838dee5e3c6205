"""Names of the trained tensors, in every form in which a file may hold them. Declared here and nowhere else.

The canonical form is the published one (diffusers names): ``transformer_blocks.N.attn.to_q.weight``,
``single_transformer_blocks.N.attn.to_v.bias`` and so on. The same tensors may come under ComfyUI's (Black Forest
Labs') own names, where q, k and v are stacked in one tensor, and under a prefix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

Stream = Literal["double", "single"]

STREAMS: tuple[Stream, ...] = ("double", "single")

# What CLEAR trains in a block (the image stream's in a double block), each with a weight and a bias.
TRAINED: dict[Stream, tuple[str, ...]] = {
    "double": ("to_q", "to_k", "to_v", "to_out.0"),
    "single": ("to_q", "to_k", "to_v"),
}
ENDS = ("weight", "bias")

PREFIXES = ("", "diffusion_model.", "transformer.", "model.diffusion_model.")


@dataclass(frozen=True)
class Layout:
    """One way to name the trained tensors.

    Attributes:
        name: For messages.
        blocks: Name of the list of blocks, by stream.
        stored: By stream: name of a stored layer within its block, and the trained parts it stacks, in row order.
        spatial: Name of ``spatial_weight`` within its block, by stream.
    """

    name: str
    blocks: dict[Stream, str]
    stored: dict[Stream, dict[str, tuple[str, ...]]]
    spatial: dict[Stream, str]


DIFFUSERS = Layout(
    "diffusers",
    {"double": "transformer_blocks", "single": "single_transformer_blocks"},
    {stream: {f"attn.{part}": (part,) for part in TRAINED[stream]} for stream in STREAMS},
    dict.fromkeys(STREAMS, "attn.processor.spatial_weight"),
)

# A full ``linear1`` stacks the MLP's rows under q, k and v; those are never CLEAR's. ComfyUI itself has no
# spatial weight, so its place is ours to choose: the published tail on the block's attention.
COMFYUI = Layout(
    "ComfyUI",
    {"double": "double_blocks", "single": "single_blocks"},
    {
        "double": {"img_attn.qkv": ("to_q", "to_k", "to_v"), "img_attn.proj": ("to_out.0",)},
        "single": {"linear1": ("to_q", "to_k", "to_v")},
    },
    {"double": "img_attn.processor.spatial_weight", "single": "processor.spatial_weight"},
)

LAYOUTS = (DIFFUSERS, COMFYUI)


@dataclass(frozen=True)
class Stored:
    """Where a trained tensor lies in a file.

    Attributes:
        key: The tensor's key in the file.
        row: Which of the stacked parts it is: its rows start at ``row * width``.
        parts: How many parts are stacked under the key; 1 for a tensor of its own.
    """

    key: str
    row: int
    parts: int


@dataclass
class Names:
    """What the keys of a file are.

    Attributes:
        layout, prefix: The form that most of the file's known keys have; every key is held against it.
        tensors: Canonical name to place in the file.
        spatial: (stream, block index) to key of ``spatial_weight``.
        blocks: Number of blocks by stream: the highest index found plus 1.
        unknown: Keys that are none of these, in the file's order.
    """

    layout: Layout
    prefix: str
    tensors: dict[str, Stored] = field(default_factory=dict)
    spatial: dict[tuple[Stream, int], str] = field(default_factory=dict)
    blocks: dict[Stream, int] = field(default_factory=lambda: {"double": 0, "single": 0})
    unknown: list[str] = field(default_factory=list)

    def missing(self) -> Iterator[str]:
        """Canonical names that the blocks found should have and have not; lazy, for an index may be absurd."""
        return (
            name for name in trained_names(self.blocks["double"], self.blocks["single"]) if name not in self.tensors
        )

    def missing_count(self) -> int:
        return sum(self.blocks[s] * len(TRAINED[s]) * len(ENDS) for s in STREAMS) - len(self.tensors)


def trained_name(stream: Stream, index: int, part: str, end: str) -> str:
    """Canonical name of one trained tensor, e.g. ``transformer_blocks.3.attn.to_out.0.bias``."""
    return f"{DIFFUSERS.blocks[stream]}.{index}.attn.{part}.{end}"


def spatial_name(stream: Stream, index: int) -> str:
    """Canonical name of a block's ``spatial_weight``."""
    return f"{DIFFUSERS.blocks[stream]}.{index}.{DIFFUSERS.spatial[stream]}"


def trained_names(num_double: int, num_single: int) -> Iterator[str]:
    """Canonical names of all trained tensors of a model, block by block, without the spatial weights."""
    for stream, count in (("double", num_double), ("single", num_single)):
        for index in range(count):
            for part in TRAINED[stream]:
                for end in ENDS:
                    yield trained_name(stream, index, part, end)


# Five digits at most: an index is used as a number, and a file's maker chose it.
KEY = re.compile(r"([a-z_]+)\.(0|[1-9][0-9]{0,4})\.(.+)", re.DOTALL)


def split_key(key: str, layout: Layout, prefix: str) -> tuple[Stream, int, str] | None:
    """(stream, block index, name within the block) of a key that names one of ``layout``'s trained tensors."""
    match = KEY.fullmatch(key[len(prefix) :]) if key.startswith(prefix) else None
    if match is None:
        return None
    for stream in STREAMS:
        if match[1] == layout.blocks[stream]:
            layer, _, end = match[3].rpartition(".")
            if match[3] == layout.spatial[stream] or (layer in layout.stored[stream] and end in ENDS):
                return stream, int(match[2]), match[3]
    return None


def recognise(keys: Iterable[str]) -> Names | None:
    """What the keys of a file are; None if not one of them is a trained tensor in any known form."""
    keys = list(keys)
    forms = [(layout, prefix) for prefix in PREFIXES for layout in LAYOUTS]
    counts = [sum(split_key(key, *form) is not None for key in keys) for form in forms]
    if not any(counts):
        return None
    names = Names(*forms[counts.index(max(counts))])
    for key in keys:
        found = split_key(key, names.layout, names.prefix)
        if found is None:
            names.unknown.append(key)
            continue
        stream, index, tail = found
        names.blocks[stream] = max(names.blocks[stream], index + 1)
        if tail == names.layout.spatial[stream]:
            names.spatial[stream, index] = key
            continue
        layer, _, end = tail.rpartition(".")
        parts = names.layout.stored[stream][layer]
        for row, part in enumerate(parts):
            names.tensors[trained_name(stream, index, part, end)] = Stored(key, row, len(parts))
    return names
