"""CLEAR minus its base: the change by distillation, which can be added to any derivative of that base.

Replacing whole weights of a fine-tune (Krea, Kontext, Fill, a merged LoRA) would discard its own training.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor

from .container import open_safetensors
from .errors import ClearFileError, dims, first_few, printable
from .header import ClearHeader
from .naming import spatial_name
from .overlap import ROWS, compared_names, overlap
from .reader import ClearFile, TensorMap, finite, read_clear_file
from .recognise import Names, Stored, recognise
from .writer import OnTensor, write_safetensors

WHOLE = {"FLUX.1": "FLUX.1-dev"}
"""The base of a family's published weights; those of the others are named by their family."""


class Slice(Protocol):
    """An entry of an open safetensors file, from ``safe_open().get_slice(key)``; nothing of it is read yet."""

    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...


class Base:
    """A whole model's tensors of the names that CLEAR trains, by canonical name, from one file or its shards.

    Names are diffusers' or ComfyUI's (Black Forest Labs'), with or without a prefix; other tensors are ignored.

    Raises:
        ClearFileError: A tensor is missing, has another shape than the CLEAR file's, or is stored in 8 bits.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]], clear: ClearFile) -> None:
        self.label = printable(" + ".join(Path(path).name for path in paths), 200)
        self.maps: dict[str, TensorMap] = {}
        for path in paths:
            name, handle = printable(Path(path).name), open_safetensors(path)
            names = recognise(handle.keys(), clear.trained)
            if names is None:
                continue
            held = {tensor: at for tensor, at in names.tensors.items() if tensor in clear.stored}
            try:
                for at in {at.key: at for at in held.values()}.values():
                    check_slice(name, handle.get_slice(at.key), at, clear.width, names)
            except SafetensorError as error:
                raise ClearFileError(f"{name} cannot be read: {printable(error)}.") from None
            self.maps |= dict.fromkeys(held, TensorMap(name, handle, held, clear.width))
        missing = [name for name in clear.stored if name not in self.maps]
        if missing:
            raise ClearFileError(
                f"{self.label} is not the base of {clear.name}: {len(missing)} of its "
                f"{len(clear.stored)} trained tensors are not there "
                f"({first_few(missing, len(missing))}); expected a whole {WHOLE.get(clear.family, clear.family)}."
            )

    def __getitem__(self, name: str) -> Tensor:
        return self.maps[name][name]


def check_slice(name: str, entry: Slice, at: Stored, width: int, names: Names) -> None:
    """Raises a ``ClearFileError`` unless the base's tensor has the CLEAR file's shape, in 16 bits or more."""
    shape, dtype = tuple(entry.get_shape()), entry.get_dtype()
    least = at.parts * width
    columns = (width,) if at.key.endswith(".weight") else ()
    # A fused layer stacks q, k, v and then MLP rows; only such a layer may have extra rows.
    rows = shape[0] >= least if shape and names.scheme.may_be_longer(at.key) else shape[:1] == (least,)
    if not rows or shape[1:] != columns:
        raise ClearFileError(
            f"{name} is of another size than the CLEAR file: {printable(at.key)} is {dims(shape)}, "
            f"expected {dims((least, *columns))}."
        )
    if dtype not in ("F64", "F32", "F16", "BF16"):
        raise ClearFileError(
            f"{name} is stored as {printable(dtype)}; a difference needs the base in 16 or 32 bits "
            f"(for FLUX.1: flux1-dev.safetensors)."
        )


def read_pair(
    base: Sequence[str | os.PathLike[str]], clear: str | os.PathLike[str]
) -> tuple[Base, ClearFile, ClearHeader]:
    """A base and the CLEAR file trained from it, checked to belong together.

    Raises:
        ClearFileError: They do not belong together, or the CLEAR file is a delta already, is stored in 8 bits, or
            does not state its radius.
    """
    file = read_clear_file(clear)
    if file.adds:
        raise ClearFileError(f"{file.name} is a {file.kind} already; expected the trained weights themselves.")
    if any(dtype.itemsize == 1 for dtype in file.dtypes):
        raise ClearFileError(f"{file.name} is stored in 8 bits; a difference needs 16 or 32 bits.")
    if file.radius is None:
        raise ClearFileError(f"{file.name} does not say its radius; give it a name like clear_local_16.safetensors.")
    model = Base(base, file)
    source = f"{file.name} minus {model.label}"
    return model, file, ClearHeader(file.radius, file.down_factor, "delta", source, family=file.family)


def difference(base: Base, clear: Mapping[str, Tensor], name: str) -> Tensor:
    """CLEAR minus base in float32, (width, width) or (width,)."""
    return clear[name].float() - base[name].float()


def compared_rows(base: Base, clear: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of the base and of CLEAR minus base, (up to ROWS, width) each, as ``overlap`` takes them."""
    for name in compared_names(clear):
        for old, new in zip(base[name].split(ROWS), clear[name].split(ROWS), strict=True):
            yield old, new.float() - old.float()


def save_delta(
    base: Sequence[str | os.PathLike[str]],
    clear: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    on_tensor: OnTensor | None = None,
) -> ClearFile:
    """Writes CLEAR minus base as a CLEAR file of kind "delta".

    It is stored in the wider dtype of the two. In bf16 that is exact if a weight changed by less than half of its
    value, and otherwise as precise as bf16 weights are.

    Args:
        base: File (or shards) of the model that it was trained from, in diffusers' or ComfyUI's names.
        clear: The CLEAR file.
        out: File to write.
        force: Whether an existing file may be replaced.

    Raises:
        ClearFileError: The files do not belong together, or ``out`` cannot be written.
    """
    model, file, header = read_pair(base, clear)
    tensors, spatial = file.tensors(), {spatial_name(*block): w for block, w in file.spatial_weights().items()}
    d = file.down_factor
    header = replace(header, overlap=overlap(compared_rows(model, tensors)))
    contents = {
        name: (torch.promote_types(tensors[name].dtype, model[name].dtype), tuple(tensors[name].shape))
        for name in tensors
    }
    contents |= dict.fromkeys(spatial, (torch.float32, (1, 1, 1, d, 1, d, 1)))

    def make(name: str) -> Tensor:
        if name in spatial:
            return spatial[name]
        delta = difference(model, tensors, name)
        if not finite(delta.to(contents[name][0])):
            raise ClearFileError(
                f"{file.name} minus {model.label} is NaN or infinite in {name}; one of the two is damaged."
            )
        return delta

    write_safetensors(out, contents, make, header.metadata(), force=force, on_tensor=on_tensor, check=read_clear_file)
    return read_clear_file(out)
