"""Names of the trained tensors, in every naming scheme that a file may use. Declared here and nowhere else.

The canonical form is the published one (diffusers names): ``transformer_blocks.N.attn.to_q.weight``,
``single_transformer_blocks.N.attn.to_v.bias`` and so on. A file may also use ComfyUI's (Black Forest
Labs') own names, which stack q, k and v in one tensor, and a prefix.
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
class NamingScheme:
    """One way to name the trained tensors.

    Attributes:
        name: "diffusers" or "ComfyUI", for messages.
        blocks: Name of the list of blocks, by stream.
        stored: By stream: name of a stored layer within its block, and the trained parts that it stacks, in row order.
        spatial: Name of ``spatial_weight`` within its block, by stream.
    """

    name: str
    blocks: dict[Stream, str]
    stored: dict[Stream, dict[str, tuple[str, ...]]]
    spatial: dict[Stream, str]


DIFFUSERS = NamingScheme(
    "diffusers",
    {"double": "transformer_blocks", "single": "single_transformer_blocks"},
    {stream: {f"attn.{part}": (part,) for part in TRAINED[stream]} for stream in STREAMS},
    dict.fromkeys(STREAMS, "attn.processor.spatial_weight"),
)

# A full ``linear1`` stacks the MLP's rows under q, k and v; CLEAR never trains those. ComfyUI itself has no
# spatial weight, so its name is our choice: the published ending, on the block's attention.
COMFYUI = NamingScheme(
    "ComfyUI",
    {"double": "double_blocks", "single": "single_blocks"},
    {
        "double": {"img_attn.qkv": ("to_q", "to_k", "to_v"), "img_attn.proj": ("to_out.0",)},
        "single": {"linear1": ("to_q", "to_k", "to_v")},
    },
    {"double": "img_attn.processor.spatial_weight", "single": "processor.spatial_weight"},
)

SCHEMES = (DIFFUSERS, COMFYUI)


@dataclass(frozen=True)
class Stored:
    """Position of a trained tensor in a file.

    Attributes:
        key: The tensor's key in the file.
        row: Index among the stacked parts: its rows start at ``row * width``.
        parts: Number of parts stacked under the key; 1 for a tensor of its own.
    """

    key: str
    row: int
    parts: int


@dataclass
class Names:
    """The keys of a file, classified.

    Attributes:
        scheme, prefix: Those of most of the file's known keys; every key is compared with them.
        tensors: Canonical name to position in the file.
        spatial: (stream, block index) to key of ``spatial_weight``.
        blocks: Number of blocks by stream: the highest index found plus 1.
        unknown: All other keys, in the file's order.
    """

    scheme: NamingScheme
    prefix: str
    tensors: dict[str, Stored] = field(default_factory=dict[str, Stored])
    spatial: dict[tuple[Stream, int], str] = field(default_factory=dict[tuple[Stream, int], str])
    blocks: dict[Stream, int] = field(default_factory=lambda: {"double": 0, "single": 0})
    unknown: list[str] = field(default_factory=list[str])

    def missing(self) -> Iterator[str]:
        """Canonical names that the blocks found lack; lazy, because a block index may be absurd."""
        return (
            name for name in trained_names(self.blocks["double"], self.blocks["single"]) if name not in self.tensors
        )

    def missing_count(self) -> int:
        """Length of ``missing``, without counting it out."""
        return sum(self.blocks[s] * len(TRAINED[s]) * len(ENDS) for s in STREAMS) - len(self.tensors)


def trained_name(stream: Stream, index: int, part: str, end: str) -> str:
    """Canonical name of one trained tensor, e.g. ``transformer_blocks.3.attn.to_out.0.bias``."""
    return f"{DIFFUSERS.blocks[stream]}.{index}.attn.{part}.{end}"


def spatial_name(stream: Stream, index: int) -> str:
    """Canonical name of a block's ``spatial_weight``."""
    return f"{DIFFUSERS.blocks[stream]}.{index}.{DIFFUSERS.spatial[stream]}"


def trained_names(num_double: int, num_single: int) -> Iterator[str]:
    """Canonical names of all trained tensors of a model, block by block, without the spatial weights."""
    for stream, count in zip(STREAMS, (num_double, num_single), strict=True):
        for index in range(count):
            for part in TRAINED[stream]:
                for end in ENDS:
                    yield trained_name(stream, index, part, end)


# Five digits at most: the index becomes an integer, and the file is not trusted.
BLOCK_KEY = re.compile(r"([a-z_]+)\.(0|[1-9][0-9]{0,4})\.(.+)", re.DOTALL)


def split_key(key: str, scheme: NamingScheme, prefix: str) -> tuple[Stream, int, str] | None:
    """(stream, block index, name within the block) of a trained tensor's key in ``scheme``; None for other keys."""
    match = BLOCK_KEY.fullmatch(key[len(prefix) :]) if key.startswith(prefix) else None
    if match is None:
        return None
    for stream in STREAMS:
        if match[1] == scheme.blocks[stream]:
            layer, _, end = match[3].rpartition(".")
            if match[3] == scheme.spatial[stream] or (layer in scheme.stored[stream] and end in ENDS):
                return stream, int(match[2]), match[3]
    return None


def recognise(keys: Iterable[str]) -> Names | None:
    """Classifies the keys of a file; None if none of them is a trained tensor in any known scheme."""
    keys = list(keys)
    forms = [(scheme, prefix) for prefix in PREFIXES for scheme in SCHEMES]
    counts = [sum(split_key(key, *form) is not None for key in keys) for form in forms]
    if not any(counts):
        return None
    names = Names(*forms[counts.index(max(counts))])
    for key in keys:
        found = split_key(key, names.scheme, names.prefix)
        if found is None:
            names.unknown.append(key)
            continue
        stream, index, tail = found
        names.blocks[stream] = max(names.blocks[stream], index + 1)
        if tail == names.scheme.spatial[stream]:
            names.spatial[stream, index] = key
            continue
        layer, _, end = tail.rpartition(".")
        parts = names.scheme.stored[stream][layer]
        for row, part in enumerate(parts):
            names.tensors[trained_name(stream, index, part, end)] = Stored(key, row, len(parts))
    return names
