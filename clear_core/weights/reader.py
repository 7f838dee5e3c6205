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
from .low_rank import Factors, LowRankMap, checked_factors, checked_low_rank_names
from .naming import Stream
from .recognise import Stored
from .trained_set import FIRST, TRAINED_SETS, TrainedSet, trained_set


@dataclass(frozen=True)
class ClearFile:
    """A checked CLEAR file: its names, shapes, dtypes and header. Only ``check_finite`` checks the elements.

    Attributes:
        path: Location.
        name: Bare name, for messages.
        family: Name of the family that it was distilled for, from the header key ``clear.family``; FLUX.1 without it.
        kind: "replace": the trained weights themselves; "delta": trained weights minus those of the base; "lora": the
            same difference as factors of low rank. A ``spatial_weight`` is a plain value in all of them.
        radius: Window radius in tokens, from the header key ``clear.radius``, else from a name of the form
            ``clear_local_<r>[_down_<d>]``, else None.
        down_factor: From the shape of ``spatial_weight``; 1 without one.
        num_double, num_single: Number of blocks.
        width: Hidden size of the model it fits.
        dtypes: dtypes of the trained weights; a file may mix them.
        rank: Of the factors of kind "lora"; None otherwise.
        source: Header key ``clear.source``, "" if there is none.
        overlap: Header key ``clear.overlap`` of a delta, None if there is none; ``overlap`` says what it is.
        naming: Naming scheme of its keys: "diffusers" or "ComfyUI".
        size: Bytes.
        stored: Position in the file by canonical name, of what is stored as it is: of kind "lora" only the biases.
        factor_keys: Keys of A and B by canonical name of a weight; empty unless the kind is "lora".
        spatial: Key of the ``spatial_weight`` by (stream, block index).
    """

    path: Path
    name: str
    family: str
    kind: Kind
    radius: int | None
    down_factor: int
    num_double: int
    num_single: int
    width: int
    dtypes: frozenset[torch.dtype]
    rank: int | None
    source: str
    overlap: float | None
    naming: str
    size: int
    stored: Mapping[str, Stored] = field(repr=False, compare=False)
    factor_keys: Mapping[str, tuple[str, str]] = field(repr=False, compare=False)
    spatial: Mapping[tuple[Stream, int], str] = field(repr=False, compare=False)

    @property
    def adds(self) -> bool:
        """Whether its tensors are changes, to be added to a model's weights; else they replace them."""
        return self.kind != "replace"

    @property
    def trained(self) -> TrainedSet:
        """What is trained in its family."""
        return TRAINED_SETS[self.family]

    def tensors(self) -> Mapping[str, Tensor]:
        """The trained tensors, or their changes if the file :attr:`adds`, by canonical name, without spatial weights.

        Weights are (width, width), biases (width,). Of kind "lora" each weight's change is computed on access, in
        float32. The others are read-only views of the memory-mapped file, in the file's dtype, and are read when they
        are used; the file stays open as long as the map or one of its tensors lives.

        Raises:
            ClearFileError: The file is gone or was damaged since it was read.
        """
        held = TensorMap(self.name, open_safetensors(self.path, CLEAR_HEADER_BYTES), self.stored, self.width)
        return LowRankMap(self.factors(), held) if self.kind == "lora" else held

    def factors(self) -> Mapping[str, Factors]:
        """A (rank, width) and B (width, rank) by canonical name of a weight; empty unless the kind is "lora".

        They are read when they are used, as :meth:`tensors` are.

        Raises:
            ClearFileError: The file is gone or was damaged since it was read.
        """
        return FactorMap(self.name, open_safetensors(self.path, CLEAR_HEADER_BYTES), self.factor_keys)

    def spatial_weights(self) -> dict[tuple[Stream, int], Tensor]:
        """Pooling weights by (stream, block index), (d, d) float32 copies; empty if d is 1."""
        handle = open_safetensors(self.path, CLEAR_HEADER_BYTES)
        d = self.down_factor
        return {
            block: read(self.name, handle, key).to(torch.float32, copy=True).reshape(d, d)
            for block, key in self.spatial.items()
        }

    def fits(self, width: int, num_double: int, num_single: int, family: str = FIRST) -> None:
        """Checks that the file belongs to a model of this family, hidden size and numbers of blocks.

        Raises:
            ClearFileError: One of them differs.
        """
        if family != self.family:
            own = f"weights that were distilled for {family}, or " if family in TRAINED_SETS else ""
            raise ClearFileError(
                f"{self.name} was distilled for {self.family}, but the model is {family}; choose {own}none for windows "
                "on its own weights."
            )
        mine = (self.width, self.num_double, self.num_single)
        model = (width, num_double, num_single)
        if mine != model:
            raise ClearFileError(
                "{} was made for a {} of width {} with {} double and {} single blocks; this model has width {} with "
                "{} double and {} single blocks, so choose a file made for it.".format(
                    self.name, self.family, *mine, *model
                )
            )

    def check_finite(self) -> None:
        """Checks every element, one tensor in memory at a time; reads the whole file once (3.6 GB for FLUX.1-dev's).

        Raises:
            ClearFileError: Some elements are NaN or infinite.
        """
        handle = open_safetensors(self.path, CLEAR_HEADER_BYTES)
        held = TensorMap(self.name, handle, self.stored, self.width)
        bad = [name for name, tensor in held.items() if not finite(tensor)]
        factors = (key for pair in self.factor_keys.values() for key in pair)
        bad += [key for key in factors if not finite(read(self.name, handle, key))]
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


class FactorMap(Mapping[str, Factors]):
    """Factors of an open low-rank file by canonical name of a weight, each read on access."""

    def __init__(self, name: str, handle: Any, keys: Mapping[str, tuple[str, str]]) -> None:
        self.name, self.handle, self.keys_of = name, handle, keys

    def __getitem__(self, name: str) -> Factors:
        down, up = self.keys_of[name]
        return read(self.name, self.handle, down), read(self.name, self.handle, up)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys_of)

    def __len__(self) -> int:
        return len(self.keys_of)


def read_clear_file(path: str | os.PathLike[str]) -> ClearFile:
    """Reads and checks the header of a CLEAR file; no tensor is read.

    Accepted are the published diffusers names and ComfyUI's own (see ``naming``), and PEFT's for a file of kind "lora"
    (see ``low_rank``). Under ComfyUI's names ``linear1`` holds exactly q, k and v, 3 * width rows. MLP rows below them
    are rejected: whether the image depends on them cannot be told.

    Raises:
        ClearFileError: One sentence for the first problem found.
    """
    path = Path(path)
    name = printable(path.name)
    handle = open_safetensors(path, CLEAR_HEADER_BYTES)
    try:
        header, keys = handle.metadata() or {}, list(handle.keys())
        size = path.stat().st_size
    except (SafetensorError, OSError) as error:
        raise ClearFileError(f"{name} cannot be read: {printable(error)}.") from None
    kind, trained = header_kind(name, header), trained_set(header.get("clear.family", FIRST), name)
    factor_keys, rank = dict[str, tuple[str, str]](), None
    if kind == "lora":
        rank = header_number(name, header, "clear.lora_rank")
        found = checked_low_rank_names(name, keys, trained)
        names, factor_keys = found.names, found.pairs()
        dtypes, width, down_factor = checked_factors(name, handle, found, rank)
    else:
        names = checked_names(name, keys, trained)
        dtypes, width, down_factor = checked_tensors(name, handle, names)
    return ClearFile(
        path=path,
        name=name,
        family=trained.family,
        kind=kind,
        radius=header_number(name, header, "clear.radius") or radius_from_name(path.name),
        down_factor=agreed_down_factor(name, header, down_factor),
        num_double=names.blocks["double"],
        num_single=names.blocks["single"],
        width=width,
        dtypes=dtypes,
        rank=rank,
        source=printable(header.get("clear.source", ""), 500),
        overlap=header_overlap(name, header),
        naming=names.scheme.name,
        size=size,
        stored=names.tensors,
        factor_keys=factor_keys,
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
