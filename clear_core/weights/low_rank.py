"""The low-rank form of a CLEAR file: the change of each trained weight as a product of two factors.

Names are PEFT's: ``transformer.<layer>.lora_A.weight`` (rank, width), ``.lora_B.weight`` (width, rank), and
``.lora_B.bias`` (width,) for the change of a bias, as its option ``lora_bias`` stores it. No alpha is stored: the
change is B @ A. Spatial weights are whole, under their canonical names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from .errors import ClearFileError, dims, first_few, printable
from .header import DTYPES, checked_down_factor, first_few_shapes
from .naming import DIFFUSERS, STREAMS, TRAINED
from .recognise import Names, Stored, split_key
from .trained_set import TrainedSet

PREFIX = "transformer."
A, B, BIAS = ".lora_A.weight", ".lora_B.weight", ".lora_B.bias"

Factors = tuple[Tensor, Tensor]
"""A (rank, width) and B (width, rank); the change is B @ A."""

FACTOR = re.compile(re.escape(PREFIX) + r"(.+)(" + "|".join(map(re.escape, (A, B, BIAS))) + ")", re.DOTALL)


@dataclass
class LowRankNames:
    """The keys of a low-rank file, classified.

    Attributes:
        names: As of any file; its ``tensors`` are the changes of biases, which are stored whole.
        factors: Canonical name of a weight to its factors' keys, by ending.
    """

    names: Names
    factors: dict[str, dict[str, str]]

    def pairs(self) -> dict[str, tuple[str, str]]:
        """Keys of A and of B by canonical name of the weight."""
        return {name: (keys[A], keys[B]) for name, keys in self.factors.items()}


def checked_low_rank_names(name: str, keys: Iterable[str], trained: TrainedSet) -> LowRankNames:
    """What the keys are; a low-rank file holds both factors of each weight, all changes of biases or none, no more.

    Raises:
        ClearFileError: One sentence for the first problem found.
    """
    names = Names(trained, DIFFUSERS, PREFIX)
    found = LowRankNames(names, {})
    for key in keys:
        match = FACTOR.fullmatch(key)
        place = split_key(f"{match[1]}.weight" if match else key, trained, DIFFUSERS, "")
        is_spatial = match is None and place is not None and place[2] == DIFFUSERS.spatial[place[0]]
        if place is None or not (match or is_spatial) or (match and match[2] == BIAS and not trained.has_bias):
            names.unknown.append(key)
            continue
        stream, index, _ = place
        names.blocks[stream] = max(names.blocks[stream], index + 1)
        if match is None:
            names.spatial[stream, index] = key
        elif match[2] == BIAS:
            names.tensors[f"{match[1]}.bias"] = Stored(key, 0, 1)
        else:
            found.factors.setdefault(f"{match[1]}.weight", {})[match[2]] = key
    check_low_rank(name, found)
    return found


def check_low_rank(name: str, found: LowRankNames) -> None:
    """Every block found is complete, and there is nothing else."""
    names, blocks = found.names, found.names.blocks
    if names.unknown:
        raise ClearFileError(
            f"{name} is not a CLEAR file: it holds {len(names.unknown)} tensors that are none of a low-rank one "
            f"({first_few(names.unknown, len(names.unknown))}); expected names like "
            f"{PREFIX}transformer_blocks.0.attn.to_q{A}."
        )
    layers = sum(blocks[stream] * len(TRAINED[stream]) for stream in STREAMS)
    factors = sum(len(keys) for keys in found.factors.values())
    missing = 2 * layers - factors
    if missing or not layers:
        raise ClearFileError(
            f"{name} is incomplete: {missing or 'all'} of its {2 * layers or ''} factors are missing; use a whole file."
        )
    if len(names.tensors) not in (0, layers):
        raise ClearFileError(
            f"{name} is incomplete: it changes {len(names.tensors)} of {layers} biases, expected all or none; use a "
            "whole file."
        )


def checked_factors(
    name: str, handle: Any, found: LowRankNames, rank: int | None
) -> tuple[frozenset[torch.dtype], int, int]:
    """dtypes of the factors, width and down factor, from the header's entry of each tensor.

    Raises:
        ClearFileError: A shape or dtype is wrong, or the header states another rank or none.
    """
    names = found.names
    if rank is None:
        raise ClearFileError(f"{name} does not say clear.lora_rank in its header; expected the rank of its factors.")
    try:
        keys = [*(key for pair in found.pairs().values() for key in pair), *(at.key for at in names.tensors.values())]
        parts = {key: handle.get_slice(key) for key in [*keys, *names.spatial.values()]}
        shapes = {key: tuple(part.get_shape()) for key, part in parts.items()}
        dtypes = {key: part.get_dtype() for key, part in parts.items()}
    except SafetensorError as error:
        raise ClearFileError(f"{name} cannot be read: {printable(error)}.") from None
    odd = [f"{key} is {dtype}" for key, dtype in dtypes.items() if dtype not in DTYPES]
    if odd:
        raise ClearFileError(
            f"{name} holds {len(odd)} tensors that are not floating-point ({first_few(odd, len(odd))}); expected one "
            f"of {', '.join(DTYPES)}."
        )
    first = shapes[keys[0]]
    width = first[1] if len(first) == 2 else 0
    expected = {B: (width, rank), A: (rank, width), BIAS: (width,)}
    wrong = [
        f"{key} is {dims(shapes[key])}, expected {dims(shape)}"
        for key in keys
        for end, shape in expected.items()
        if key.endswith(end) and shapes[key] != shape
    ]
    if wrong or not 0 < rank <= width:
        raise ClearFileError(
            f"{name} holds {len(wrong)} tensors of a wrong shape for rank {rank} ({first_few_shapes(wrong)}); it is "
            "damaged or not a CLEAR file."
        )
    down_factor = checked_down_factor(name, {key: shapes[key] for key in names.spatial.values()}, names)
    return frozenset(DTYPES[dtypes[key]] for key in keys), width, down_factor


class LowRankMap(Mapping[str, Tensor]):
    """The changes of a low-rank file by canonical name, in float32, each computed on access; biases as they are stored.

    Args:
        factors: A and B by canonical name of a weight.
        biases: Changes of biases by canonical name.
    """

    def __init__(self, factors: Mapping[str, Factors], biases: Mapping[str, Tensor]) -> None:
        self.factors, self.biases = factors, biases

    def __getitem__(self, name: str) -> Tensor:
        if name in self.biases:
            return self.biases[name].float()
        down, up = self.factors[name]
        return up.float() @ down.float()

    def __iter__(self) -> Iterator[str]:
        yield from self.factors
        yield from self.biases

    def __len__(self) -> int:
        return len(self.factors) + len(self.biases)
