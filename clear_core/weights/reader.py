"""The contents of a CLEAR file, from its header alone; tensors are memory-mapped when they are used."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from .container import CLEAR_HEADER_BYTES, open_safetensors
from .errors import ClearFileError, first_few, printable
from .filename import radius_from_name
from .header import Kind, agreed_down_factor, checked_names, checked_tensors, header_kind, header_number, header_overlap
from .naming import Stored, Stream


@dataclass(frozen=True)
class ClearFile:
    """A checked CLEAR file: its names, shapes, dtypes and header. Only ``check_finite`` checks the elements.

    Attributes:
        path: Location.
        name: Bare name, for messages.
        kind: "replace": the trained weights themselves; "delta": trained weights minus those of the base. A
            ``spatial_weight`` is a plain value in both.
        radius: Window radius in tokens, from the header key ``clear.radius``, else from a name of the form
            ``clear_local_<r>[_down_<d>]``, else None.
        down_factor: From the shape of ``spatial_weight``; 1 without one.
        num_double, num_single: Number of blocks.
        width: Hidden size of the model it fits.
        dtypes: dtypes of the trained weights; a file may mix them.
        source: Header key ``clear.source``, "" if there is none.
        overlap: Header key ``clear.overlap`` of a delta, None if there is none; ``overlap`` says what it is.
        naming: Naming scheme of its keys: "diffusers" or "ComfyUI".
        size: Bytes.
        stored: Position in the file by canonical name.
        spatial: Key of the ``spatial_weight`` by (stream, block index).
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
    overlap: float | None
    naming: str
    size: int
    stored: Mapping[str, Stored] = field(repr=False, compare=False)
    spatial: Mapping[tuple[Stream, int], str] = field(repr=False, compare=False)

    def tensors(self) -> TensorMap:
        """The trained tensors by canonical name: weights (width, width), biases (width,), without spatial weights.

        Each is a read-only view of the memory-mapped file, in the file's dtype, and is read when it is used. The
        file stays open as long as the map or one of its tensors lives.

        Raises:
            ClearFileError: The file is gone or was damaged since it was read.
        """
        return TensorMap(self.name, open_safetensors(self.path, CLEAR_HEADER_BYTES), self.stored, self.width)

    def spatial_weights(self) -> dict[tuple[Stream, int], Tensor]:
        """Pooling weights by (stream, block index), (d, d) float32 copies; empty if d is 1."""
        handle = open_safetensors(self.path, CLEAR_HEADER_BYTES)
        d = self.down_factor
        return {
            block: read(self.name, handle, key).to(torch.float32, copy=True).reshape(d, d)
            for block, key in self.spatial.items()
        }

    def fits(self, width: int, num_double: int, num_single: int) -> None:
        """Checks that the file belongs to a model of this hidden size and these numbers of blocks.

        Raises:
            ClearFileError: One of them differs.
        """
        mine = (self.width, self.num_double, self.num_single)
        model = (width, num_double, num_single)
        if mine != model:
            raise ClearFileError(
                "{} was made for a FLUX of width {} with {} double and {} single blocks; this model has width {} with "
                "{} double and {} single blocks, so choose a file made for it.".format(self.name, *mine, *model)
            )

    def check_finite(self) -> None:
        """Checks every element, one tensor in memory at a time; reads the whole file once (3.6 GB for FLUX.1-dev's).

        Raises:
            ClearFileError: Some elements are NaN or infinite.
        """
        bad = [name for name, tensor in self.tensors().items() if not finite(tensor)]
        bad += [self.spatial[block] for block, tensor in self.spatial_weights().items() if not finite(tensor)]
        if bad:
            raise ClearFileError(
                f"{self.name} has NaN or infinite values in {len(bad)} tensors "
                f"({first_few(bad, len(bad))}); download it again or use another file."
            )


class TensorMap(Mapping[str, Tensor]):
    """Trained tensors of an open file by canonical name, each read on access."""

    def __init__(self, name: str, handle: Any, stored: Mapping[str, Stored], width: int) -> None:
        self.name, self.handle, self.stored, self.width = name, handle, stored, width

    def __getitem__(self, name: str) -> Tensor:
        at = self.stored[name]
        tensor = read(self.name, self.handle, at.key)
        # Rows are counted in widths, not as a share of the tensor: a base's linear1 has MLP rows below q, k and v.
        return tensor if at.parts == 1 else tensor[at.row * self.width : (at.row + 1) * self.width]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def read_clear_file(path: str | os.PathLike[str]) -> ClearFile:
    """Reads and checks the header of a CLEAR file; no tensor is read.

    Accepted are the published diffusers names and ComfyUI's own (see ``naming``). Under ComfyUI's names
    ``linear1`` holds exactly q, k and v, 3 * width rows. MLP rows below them are rejected: whether the image
    depends on them cannot be told.

    Raises:
        ClearFileError: One sentence for the first problem found.
    """
    path = Path(path)
    name = printable(path.name)
    handle = open_safetensors(path, CLEAR_HEADER_BYTES)
    try:
        header = handle.metadata() or {}
        names = checked_names(name, list(handle.keys()))
        size = path.stat().st_size
    except (SafetensorError, OSError) as error:
        raise ClearFileError(f"{name} cannot be read: {printable(error)}.") from None
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
        source=printable(header.get("clear.source", ""), 500),
        overlap=header_overlap(name, header),
        naming=names.scheme.name,
        size=size,
        stored=names.tensors,
        spatial=names.spatial,
    )


def read(name: str, handle: Any, key: str) -> Tensor:
    """One tensor of an open file.

    Raises:
        ClearFileError: The file changed since its header was read.
    """
    try:
        return handle.get_tensor(key)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ClearFileError(f"{name} changed while it was read ({printable(error)}); choose it again.") from None


def finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    # Minimum and maximum propagate NaN and allocate no second tensor; float8 has neither operation.
    low, high = torch.aminmax(tensor.float() if tensor.dtype.itemsize == 1 else tensor)
    return bool(low.isfinite() and high.isfinite())
