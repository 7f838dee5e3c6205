"""Tells from the keys of a file what its tensors are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .naming import DIFFUSERS, PREFIXES, NamingScheme, Stream, trained_name
from .trained_set import FLUX1_SET, TrainedSet


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
        trained: What is trained in the file's family.
        scheme, prefix: Those of most of the file's known keys; every key is compared with them.
        tensors: Canonical name to position in the file.
        spatial: (stream, block index) to key of ``spatial_weight``.
        blocks: Number of blocks by stream: the highest index found plus 1.
        unknown: All other keys, in the file's order.
    """

    trained: TrainedSet
    scheme: NamingScheme
    prefix: str
    tensors: dict[str, Stored] = field(default_factory=dict[str, Stored])
    spatial: dict[tuple[Stream, int], str] = field(default_factory=dict[tuple[Stream, int], str])
    blocks: dict[Stream, int] = field(default_factory=lambda: {"double": 0, "single": 0})
    unknown: list[str] = field(default_factory=list[str])

    def missing(self) -> Iterator[str]:
        """Canonical names that the blocks found lack; lazy, because a block index may be absurd."""
        return (name for name in self.trained.names(*self.blocks.values()) if name not in self.tensors)

    def missing_count(self) -> int:
        """Length of ``missing``, without counting it out."""
        return self.trained.count(*self.blocks.values()) - len(self.tensors)


# Five digits at most: the index becomes an integer, and the file is not trusted.
BLOCK_KEY = re.compile(r"([a-z_]+)\.(0|[1-9][0-9]{0,4})\.(.+)", re.DOTALL)


def split_key(key: str, trained: TrainedSet, scheme: NamingScheme, prefix: str) -> tuple[Stream, int, str] | None:
    """(stream, block index, name within the block) of a trained tensor's key in ``scheme``; None for other keys."""
    match = BLOCK_KEY.fullmatch(key[len(prefix) :]) if key.startswith(prefix) else None
    if match is None:
        return None
    for stream in trained.streams:
        if match[1] == scheme.blocks[stream]:
            layer, _, end = match[3].rpartition(".")
            if match[3] == scheme.spatial[stream] or (layer in scheme.stored[stream] and end in trained.ends):
                return stream, int(match[2]), match[3]
    return None


def block_counts(names: Iterable[str]) -> tuple[int, int]:
    """Number of double and of single blocks among canonical names of layers or tensors: the highest index plus 1."""
    counts: dict[str, int] = {}
    for match in filter(None, map(BLOCK_KEY.fullmatch, names)):
        counts[match[1]] = max(counts.get(match[1], 0), int(match[2]) + 1)
    return counts.get(DIFFUSERS.blocks["double"], 0), counts.get(DIFFUSERS.blocks["single"], 0)


def recognise(keys: Iterable[str], trained: TrainedSet = FLUX1_SET) -> Names | None:
    """Classifies the keys of a file; None if none of them is a trained tensor of the family in any known scheme."""
    keys = list(keys)
    forms = [(scheme, prefix) for prefix in PREFIXES for scheme in trained.schemes]
    counts = [sum(split_key(key, trained, *form) is not None for key in keys) for form in forms]
    if not any(counts):
        return None
    names = Names(trained, *forms[counts.index(max(counts))])
    for key in keys:
        found = split_key(key, trained, names.scheme, names.prefix)
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
        held = {trained_name(stream, index, part, end): row for row, part in enumerate(parts)}
        if held.keys() & names.tensors.keys():
            # The same rows twice, stacked and apart: which of them counts cannot be told.
            names.unknown.append(key)
            continue
        names.tensors |= {tensor: Stored(key, row, len(parts)) for tensor, row in held.items()}
    return names
