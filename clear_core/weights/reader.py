"""What a CLEAR file holds: read from its header alone, its tensors memory-mapped when they are asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from .container import open_safetensors
from .errors import ClearFileError, dims, first_few, shown
from .filename import radius_from_name
from .naming import Names, Stored, Stream, recognise

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

NUMBER = re.compile(r"[1-9][0-9]{0,3}")

Kind = Literal["replace", "delta"]


@dataclass(frozen=True)
class ClearFile:
    """A checked CLEAR file. Checked are names, shapes, dtypes and header; the numbers only by ``check_finite``.

    Attributes:
        path: Where it is.
        name: Its bare name, for messages.
        kind: "replace": the trained weights themselves; "delta": what training added to the base. A
            ``spatial_weight`` is a plain value in both.
        radius: Window radius in tokens, from the header key ``clear.radius``, else from a name of the form
            ``clear_local_<r>[_down_<d>]``, else None.
        down_factor: From the shape of ``spatial_weight``; 1 without one.
        num_double, num_single: Number of blocks.
        width: Hidden size of the model it fits.
        dtypes: Of the trained weights; a file may mix them.
        source: Header key ``clear.source``, "" if there is none.
        layout: Whose names it uses: "diffusers" or "ComfyUI".
        size: Bytes.
    """

    path: Path
    name: str
    kind: Kind
    radius: int | None
    down_factor: int
    num_double: int
    num_single: int
    width: int
    dtypes: frozenset[torch.dtype]
    source: str
    layout: str
    size: int
    stored: Mapping[str, Stored] = field(repr=False, compare=False)
    spatial: Mapping[tuple[Stream, int], str] = field(repr=False, compare=False)

    def tensors(self) -> TensorMap:
        """The trained tensors by canonical name: weights (width, width), biases (width,), without spatial weights.

        Each is a view of the memory-mapped file, in the file's dtype: nothing is read before it is used, and
        nothing may be written to it. The file stays open as long as the map or one of its tensors lives.

        Raises:
            ClearFileError: The file is gone or was damaged since it was read.
        """
        return TensorMap(self.name, open_safetensors(self.path), self.stored, self.width)

    def spatial_weights(self) -> dict[tuple[Stream, int], Tensor]:
        """By (stream, block index) the pooling weights, (d, d) float32 and a copy; empty where d is 1."""
        handle = open_safetensors(self.path)
        d = self.down_factor
        return {
            block: read(self.name, handle, key).to(torch.float32, copy=True).reshape(d, d)
            for block, key in self.spatial.items()
        }

    def fits(self, width: int, num_double: int, num_single: int) -> None:
        """Holds the file against a model.

        Raises:
            ClearFileError: Hidden size or number of blocks differ.
        """
        mine = (self.width, self.num_double, self.num_single)
        model = (width, num_double, num_single)
        if mine != model:
            raise ClearFileError(
                "{} was made for a FLUX of width {} with {} double and {} single blocks; this model has width {} with "
                "{} double and {} single blocks, so choose a file made for it.".format(self.name, *mine, *model)
            )

    def check_finite(self) -> None:
        """Looks at every number, one tensor in memory at a time; reads the whole file once (3.6 GB for FLUX.1-dev's).

        Raises:
            ClearFileError: Some are NaN or infinite.
        """
        bad = [name for name, tensor in self.tensors().items() if not finite(tensor)]
        bad += [self.spatial[block] for block, tensor in self.spatial_weights().items() if not finite(tensor)]
        if bad:
            raise ClearFileError(
                f"{self.name} has NaN or infinite numbers in {len(bad)} tensors "
                f"({first_few(bad, len(bad))}); download it again or use another file."
            )


class TensorMap(Mapping[str, Tensor]):
    """Trained tensors of an open file by canonical name, each made when it is asked for."""

    def __init__(self, name: str, handle: Any, stored: Mapping[str, Stored], width: int) -> None:
        self.name, self.handle, self.stored, self.width = name, handle, stored, width

    def __getitem__(self, name: str) -> Tensor:
        at = self.stored[name]
        tensor = read(self.name, self.handle, at.key)
        # Bounds are the width's own, not a split into parts: a base's linear1 has MLP rows below q, k and v.
        return tensor if at.parts == 1 else tensor[at.row * self.width : (at.row + 1) * self.width]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def read_clear_file(path: str | os.PathLike[str]) -> ClearFile:
    """Reads and checks the header of a CLEAR file; no tensor is read.

    Accepted are the published diffusers names and ComfyUI's own (see ``naming``). Under ComfyUI's names
    ``linear1`` holds exactly q, k and v, 3 * width rows: MLP rows below them are refused, since nobody could
    tell whether leaving them out changes the picture.

    Raises:
        ClearFileError: One sentence for the first problem found.
    """
    path = Path(path)
    name = shown(path.name)
    handle = open_safetensors(path)
    try:
        header = handle.metadata() or {}
        names = checked_names(name, list(handle.keys()))
        size = path.stat().st_size
    except (SafetensorError, OSError) as error:
        raise ClearFileError(f"{name} cannot be read: {shown(error)}.") from None
    dtypes, width, down_factor = checked_tensors(name, handle, names)
    return ClearFile(
        path=path,
        name=name,
        kind=header_kind(name, header),
        radius=header_number(name, header, "clear.radius") or radius_from_name(path.name),
        down_factor=agreed_down_factor(name, header, down_factor),
        num_double=names.blocks["double"],
        num_single=names.blocks["single"],
        width=width,
        dtypes=dtypes,
        source=shown(header.get("clear.source", ""), 500),
        layout=names.layout.name,
        size=size,
        stored=names.tensors,
        spatial=names.spatial,
    )


def checked_names(name: str, keys: list[str]) -> Names:
    names = recognise(keys)
    if names is None:
        holds = f"its tensors are called {first_few(keys, len(keys))}" if keys else "it holds no tensor at all"
        raise ClearFileError(
            f"{name} is not a CLEAR file: {holds}; expected names like transformer_blocks.0.attn.to_q.weight."
        )
    if names.unknown:
        count = len(names.unknown)
        raise ClearFileError(
            f"{name} is not a CLEAR file: besides {len(keys) - count} known tensors it holds {count} that CLEAR does "
            f"not train ({first_few(names.unknown, count)}); a LoRA or a whole model goes into its own loader."
        )
    check_complete(name, names)
    return names


def check_complete(name: str, names: Names) -> None:
    missing = names.missing_count()
    if missing:
        raise ClearFileError(
            f"{name} is incomplete: {missing} trained tensors are missing "
            f"({first_few(names.missing(), missing)}); use a whole file."
        )


def checked_tensors(name: str, handle: Any, names: Names) -> tuple[frozenset[torch.dtype], int, int]:
    """dtypes of the trained weights, width and down factor, from what the header says of each known tensor."""
    try:
        parts = {
            key: handle.get_slice(key) for key in [*{at.key for at in names.tensors.values()}, *names.spatial.values()]
        }
        shapes = {key: tuple(part.get_shape()) for key, part in parts.items()}
        dtypes = {key: part.get_dtype() for key, part in parts.items()}
    except SafetensorError as error:
        raise ClearFileError(f"{name} cannot be read: {shown(error)}.") from None
    floats, width = checked_dtypes(name, dtypes, names), checked_width(name, shapes, names)
    return floats, width, checked_down_factor(name, {key: shapes[key] for key in names.spatial.values()}, names)


def checked_dtypes(name: str, found: dict[str, str], names: Names) -> frozenset[torch.dtype]:
    wrong = [f"{key} is {dtype}" for key, dtype in found.items() if dtype not in DTYPES]
    if wrong:
        raise ClearFileError(
            f"{name} holds {len(wrong)} tensors that are not floating-point "
            f"({first_few(wrong, len(wrong))}); expected one of {', '.join(DTYPES)}."
        )
    spatial = set(names.spatial.values())
    return frozenset(DTYPES[dtype] for key, dtype in found.items() if key not in spatial)


def checked_width(name: str, shapes: dict[str, tuple[int, ...]], names: Names) -> int:
    first = next(at.key for tensor, at in names.tensors.items() if tensor.endswith(".weight"))
    width = shapes[first][-1] if shapes[first] else 0
    wrong = []
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
    return "; ".join(shown(line, 120) for line in wrong[:2]) + ("; …" if len(wrong) > 2 else "")


def checked_down_factor(name: str, shapes: dict[str, tuple[int, ...]], names: Names) -> int:
    """d of the spatial weights, stored as (1, 1, 1, d, 1, d, 1) or (d, d); 1 where there is none."""
    if not shapes:
        return 1
    blocks = names.blocks["double"] + names.blocks["single"]
    if len(shapes) != blocks:
        raise ClearFileError(
            f"{name} is incomplete: {blocks - len(shapes)} of its {blocks} blocks have no "
            f"spatial_weight; download it again."
        )
    factors = {}
    for key, shape in shapes.items():
        d = max(shape, default=0)
        if shape not in ((1, 1, 1, d, 1, d, 1), (d, d)) or not 2 <= d <= 64:
            raise ClearFileError(
                f"{name} holds a spatial_weight of a wrong shape ({shown(key)} is {dims(shape)}); "
                f"expected 1 x 1 x 1 x d x 1 x d x 1 with d from 2 to 64."
            )
        factors[d] = key
    if len(factors) > 1:
        listed = ", ".join(f"{d} in {shown(key)}" for d, key in sorted(factors.items()))
        raise ClearFileError(f"{name} mixes down factors ({shown(listed, 300)}); expected the same in every block.")
    return next(iter(factors))


def agreed_down_factor(name: str, header: Mapping[str, str], down_factor: int) -> int:
    stated = header_number(name, header, "clear.down_factor")
    if stated not in (None, down_factor):
        raise ClearFileError(
            f"{name} contradicts itself: its header says clear.down_factor {stated}, its "
            f"spatial_weight says {down_factor}; download it again."
        )
    return down_factor


def header_number(name: str, header: Mapping[str, str], key: str) -> int | None:
    value = header.get(key)
    if value is None:
        return None
    if not NUMBER.fullmatch(value):
        raise ClearFileError(
            f"{name} has the header value {key} = {shown(value)!r}; expected a whole number from 1 to 9999."
        )
    return int(value)


def header_kind(name: str, header: Mapping[str, str]) -> Kind:
    value = header.get("clear.kind", "replace")
    if value not in ("replace", "delta"):
        raise ClearFileError(f"{name} has the header value clear.kind = {shown(value)!r}; expected replace or delta.")
    return value


def read(name: str, handle: Any, key: str) -> Tensor:
    try:
        return handle.get_tensor(key)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ClearFileError(f"{name} changed while it was read ({shown(error)}); choose it again.") from None


def finite(tensor: Tensor) -> bool:
    # The extremes carry a NaN along and need no second tensor; float8 has neither.
    low, high = torch.aminmax(tensor.float() if tensor.dtype.itemsize == 1 else tensor)
    return bool(low.isfinite() and high.isfinite())
