"""The header of a CLEAR file: what it states about itself, and the checks of names, shapes and dtypes.

Every check raises a ``ClearFileError`` of one sentence for the first problem it finds; ``name`` is the file's, for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from .errors import ClearFileError, dims, first_few, printable
from .recognise import Names, recognise
from .trained_set import FIRST, TrainedSet

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

NUMBER = re.compile(r"[1-9][0-9]{0,3}")

OVERLAP = re.compile(r"-?[0-9]{1,9}\.[0-9]{1,6}")

Kind = Literal["replace", "delta", "lora"]

KINDS: tuple[Kind, ...] = ("replace", "delta", "lora")


@dataclass(frozen=True)
class ClearHeader:
    """What a CLEAR file of ours states in its header; the published files state nothing.

    Attributes:
        radius: Window radius in tokens that the weights were trained with.
        down_factor: Side of the pooled cells in tokens; 1 without pooling.
        kind: "replace", "delta" or "lora", as in ``ClearFile``.
        source: Where the weights come from, one line of text.
        overlap: Of a delta with its base (see ``overlap``); None if it is not stated.
        family: Name of the family that the weights were trained for, a key of ``TRAINED_SETS``.
        lora_rank: Rank of the factors of kind "lora".
    """

    radius: int
    down_factor: int = 1
    kind: Kind = "replace"
    source: str = ""
    overlap: float | None = None
    family: str = FIRST
    lora_rank: int | None = None

    def metadata(self) -> dict[str, str]:
        """The header's text entries, as ``read_clear_file`` expects them."""
        stated = {} if self.overlap is None else {"clear.overlap": f"{self.overlap:.6f}"}
        if self.lora_rank is not None:
            stated["clear.lora_rank"] = str(self.lora_rank)
        return {
            "format": "pt",
            "clear.family": self.family,
            "clear.kind": self.kind,
            "clear.radius": str(self.radius),
            "clear.down_factor": str(self.down_factor),
            "clear.source": self.source,
            **stated,
        }


def checked_names(name: str, keys: list[str], trained: TrainedSet) -> Names:
    """What the keys are; a CLEAR file holds all trained tensors of its blocks and nothing else."""
    names = recognise(keys, trained)
    if names is None:
        holds = f"its tensors are called {first_few(keys, len(keys))}" if keys else "it holds no tensor at all"
        raise ClearFileError(
            f"{name} is not a CLEAR file: {holds}; expected names like transformer_blocks.0.attn.to_q.weight."
        )
    if names.unknown:
        count = len(names.unknown)
        raise ClearFileError(
            f"{name} is not a CLEAR file: besides {len(keys) - count} known tensors it holds {count} that CLEAR does "
            f"not train in {trained.family} ({first_few(names.unknown, count)}); a LoRA or a whole model goes into its "
            "own loader."
        )
    check_complete(name, names)
    return names


def check_complete(name: str, names: Names) -> None:
    """Every block found has all its trained tensors."""
    missing = names.missing_count()
    if missing:
        raise ClearFileError(
            f"{name} is incomplete: {missing} trained tensors are missing "
            f"({first_few(names.missing(), missing)}); use a whole file."
        )


def checked_tensors(name: str, handle: Any, names: Names) -> tuple[frozenset[torch.dtype], int, int]:
    """dtypes of the trained weights, width and down factor, from the header's entry of each known tensor."""
    try:
        parts = {
            key: handle.get_slice(key) for key in [*{at.key for at in names.tensors.values()}, *names.spatial.values()]
        }
        shapes = {key: tuple(part.get_shape()) for key, part in parts.items()}
        dtypes = {key: part.get_dtype() for key, part in parts.items()}
    except SafetensorError as error:
        raise ClearFileError(f"{name} cannot be read: {printable(error)}.") from None
    floats, width = checked_dtypes(name, dtypes, names), checked_width(name, shapes, names)
    return floats, width, checked_down_factor(name, {key: shapes[key] for key in names.spatial.values()}, names)


def checked_dtypes(name: str, found: dict[str, str], names: Names) -> frozenset[torch.dtype]:
    """dtypes of the trained weights; all tensors are floating-point."""
    wrong = [f"{key} is {dtype}" for key, dtype in found.items() if dtype not in DTYPES]
    if wrong:
        raise ClearFileError(
            f"{name} holds {len(wrong)} tensors that are not floating-point "
            f"({first_few(wrong, len(wrong))}); expected one of {', '.join(DTYPES)}."
        )
    spatial = set(names.spatial.values())
    return frozenset(DTYPES[dtype] for key, dtype in found.items() if key not in spatial)


def checked_width(name: str, shapes: dict[str, tuple[int, ...]], names: Names) -> int:
    """The hidden size: weights are (parts * width, width), biases (parts * width,)."""
    first = next(at.key for tensor, at in names.tensors.items() if tensor.endswith(".weight"))
    width = shapes[first][-1] if shapes[first] else 0
    wrong: list[str] = []
    for tensor, at in names.tensors.items():
        rows = at.parts * width
        expected = (rows, width) if tensor.endswith(".weight") else (rows,)
        if at.row == 0 and (shapes[at.key] != expected or width == 0):
            wrong.append(f"{at.key} is {dims(shapes[at.key])}, expected {dims(expected) if width else 'a square'}")
    if wrong:
        raise ClearFileError(
            f"{name} holds {len(wrong)} tensors of a wrong shape ({first_few_shapes(wrong)}); "
            f"it is damaged or not a CLEAR file."
        )
    return width


def first_few_shapes(wrong: list[str]) -> str:
    return "; ".join(printable(line, 120) for line in wrong[:2]) + ("; …" if len(wrong) > 2 else "")


def checked_down_factor(name: str, shapes: dict[str, tuple[int, ...]], names: Names) -> int:
    """d of the spatial weights, stored as (1, 1, 1, d, 1, d, 1) or (d, d); 1 without any."""
    if not shapes:
        return 1
    blocks = names.blocks["double"] + names.blocks["single"]
    if len(shapes) != blocks:
        raise ClearFileError(
            f"{name} is incomplete: {blocks - len(shapes)} of its {blocks} blocks have no "
            f"spatial_weight; download it again."
        )
    factors: dict[int, str] = {}
    for key, shape in shapes.items():
        d = max(shape, default=0)
        if shape not in ((1, 1, 1, d, 1, d, 1), (d, d)) or not 2 <= d <= 64:
            raise ClearFileError(
                f"{name} holds a spatial_weight of a wrong shape ({printable(key)} is {dims(shape)}); "
                f"expected 1 x 1 x 1 x d x 1 x d x 1 with d from 2 to 64."
            )
        factors[d] = key
    if len(factors) > 1:
        listed = ", ".join(f"{d} in {printable(key)}" for d, key in sorted(factors.items()))
        raise ClearFileError(f"{name} mixes down factors ({printable(listed, 300)}); expected the same in every block.")
    return next(iter(factors))


def agreed_down_factor(name: str, header: Mapping[str, str], down_factor: int) -> int:
    """``down_factor``, if the header states the same or nothing."""
    stated = header_number(name, header, "clear.down_factor")
    if stated not in (None, down_factor):
        raise ClearFileError(
            f"{name} contradicts itself: its header says clear.down_factor {stated}, its "
            f"spatial_weight says {down_factor}; download it again."
        )
    return down_factor


def header_number(name: str, header: Mapping[str, str], key: str) -> int | None:
    """The whole number from 1 to 9999 under ``key``; None if there is no such key."""
    value = header.get(key)
    if value is None:
        return None
    if not NUMBER.fullmatch(value):
        raise ClearFileError(
            f"{name} has the header value {key} = {printable(value)!r}; expected a whole number from 1 to 9999."
        )
    return int(value)


def header_overlap(name: str, header: Mapping[str, str]) -> float | None:
    """The overlap that a delta's header states; None if it states none."""
    value = header.get("clear.overlap")
    if value is None:
        return None
    if not OVERLAP.fullmatch(value):
        raise ClearFileError(
            f"{name} has the header value clear.overlap = {printable(value)!r}; expected a number like -0.123456."
        )
    return float(value)


def header_kind(name: str, header: Mapping[str, str]) -> Kind:
    """The kind that the header states; "replace" if it states none."""
    value = header.get("clear.kind", "replace")
    if value not in KINDS:
        raise ClearFileError(
            f"{name} has the header value clear.kind = {printable(value)!r}; expected {', '.join(KINDS[:-1])} or "
            f"{KINDS[-1]}."
        )
    return value
