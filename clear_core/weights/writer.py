"""Writes safetensors files tensor by tensor, and CLEAR files in the published format with a header.

The safetensors package writes from memory only; a delta or a converted state is 3.6 to 7.2 GB.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from .errors import ClearFileError, dims, first_few, printable
from .header import DTYPES, ClearHeader, header_kind, header_number
from .low_rank import BIAS, PREFIX, A, B, Factors
from .naming import STREAMS, Stream, spatial_name, trained_names
from .reader import ClearFile, finite, read_clear_file
from .recognise import block_counts
from .trained_set import trained_set

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Called with (tensors written, tensors in all).
OnTensor = Callable[[int, int], None]


def write_safetensors(
    path: str | os.PathLike[str],
    contents: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    make: Callable[[str], Tensor],
    header: Mapping[str, str],
    *,
    force: bool = False,
    on_tensor: OnTensor | None = None,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Writes a safetensors file with one tensor in memory at a time.

    The file appears under its name once it is whole, on disk and checked; until then it is a temporary file beside
    it, removed on any failure.

    Args:
        path: File to write; its folder must exist.
        contents: dtype and shape of each tensor by key.
        make: Returns the tensor of a key, in the shape of ``contents``; it is converted to the dtype of ``contents``.
        header: Text entries for the file's header.
        force: Whether an existing file may be replaced.
        check: Called with the temporary file; if it raises, the file does not appear.

    Raises:
        ClearFileError: The file exists and ``force`` is not set, or it cannot be written.
    """
    path = Path(path)
    if path.exists() and not force:
        raise ClearFileError(
            f"{printable(path.name)} exists already; choose another name or give --force to replace it."
        )
    offset, entries = 0, dict[str, object]()
    # Wide dtypes first, so that each tensor starts at a multiple of its item size.
    keys = sorted(contents, key=lambda key: (-contents[key][0].itemsize, key))
    for key in keys:
        dtype, shape = contents[key]
        end = offset + dtype.itemsize * torch.Size(shape).numel()
        entries[key] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps({"__metadata__": dict(header), **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # Not .safetensors: the remains of a killed process must not appear in a list of weights.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for count, key in enumerate(keys, 1):
                dtype, shape = contents[key]
                tensor = make(key).to("cpu", dtype).reshape(shape).contiguous()
                file.write(tensor.flatten().view(torch.uint8).numpy().data)
                if on_tensor:
                    on_tensor(count, len(keys))
            file.flush()
            os.fsync(file.fileno())
        if check:
            check(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise ClearFileError(
            f"{printable(path.name)} cannot be written: {printable(error.strerror or error)} "
            f"({printable(path.parent)})."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path


def save_clear_file(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    spatial_weights: Mapping[tuple[Stream, int], Tensor],
    header: ClearHeader,
    *,
    dtype: torch.dtype | None = None,
    force: bool = False,
    on_tensor: OnTensor | None = None,
) -> ClearFile:
    """Writes a trained state, or its change, in the published format, with a header that the published files lack.

    Args:
        path: File to write.
        tensors: Canonical name to trained tensor, (width, width) or (width,), as ``TrainedSet.names`` of the family
            lists them. Other names are an error: select CLEAR's with ``recognise`` first.
        spatial_weights: (stream, block index) to (d, d), for every block; empty if the down factor is 1.
        header: Radius, down factor d, family, kind ("replace" or "delta") and source.
        dtype: dtype of the trained weights in the file; None keeps each one's own. Spatial weights are float32.
        force: Whether an existing file may be replaced.

    Returns:
        The file as read back.

    Raises:
        ClearFileError: Names, shapes or header are not those of a CLEAR file, elements are NaN or infinite, or the
            file cannot be written.
    """
    name = printable(Path(path).name)
    if header.kind == "lora":
        raise ClearFileError(f"{name} was not written: its header says kind lora, which save_clear_lora writes.")
    blocks = _checked_blocks(name, tensors, header)
    return _write(
        path, tensors, _checked_spatial(name, spatial_weights, blocks, header), header, dtype, force, on_tensor
    )


def save_clear_lora(
    path: str | os.PathLike[str],
    factors: Mapping[str, Factors],
    biases: Mapping[str, Tensor],
    spatial_weights: Mapping[tuple[Stream, int], Tensor],
    header: ClearHeader,
    *,
    dtype: torch.dtype | None = None,
    force: bool = False,
    on_tensor: OnTensor | None = None,
) -> ClearFile:
    """Writes a trained change of low rank as a CLEAR file of kind "lora", in PEFT's names.

    Args:
        path: File to write.
        factors: Name of a layer (``transformer_blocks.0.attn.to_q``) to A (rank, width) and B (width, rank), for every
            trained layer of the family. The change is B @ A: any scale (PEFT's alpha / rank) is multiplied in already.
        biases: Name of a layer to the change of its bias, (width,), of all layers; empty if none was trained.
        spatial_weights: As in :func:`save_clear_file`.
        header: Radius, down factor, family and source; its kind and rank are set here.
        dtype: dtype of factors and biases in the file; None keeps each one's own.
        force: Whether an existing file may be replaced.

    Returns:
        The file as read back.

    Raises:
        ClearFileError: As :func:`save_clear_file`; or the layers have different ranks.
    """
    name = printable(Path(path).name)
    ranks = sorted({down.shape[0] for down, _ in factors.values()})
    if len(ranks) > 1:
        raise ClearFileError(f"{name} was not written: its layers have ranks {ranks[0]} to {ranks[-1]}, expected one.")
    header = replace(header, kind="lora", lora_rank=ranks[0] if ranks else 1)
    given = [f"{layer}.weight" for layer in factors] + [f"{layer}.bias" for layer in biases]
    blocks = _checked_blocks(name, given, header, bias=bool(biases))
    tensors = {f"{PREFIX}{layer}{A}": down for layer, (down, _) in factors.items()}
    tensors |= {f"{PREFIX}{layer}{B}": up for layer, (_, up) in factors.items()}
    tensors |= {f"{PREFIX}{layer}{BIAS}": bias for layer, bias in biases.items()}
    return _write(
        path, tensors, _checked_spatial(name, spatial_weights, blocks, header), header, dtype, force, on_tensor
    )


def _checked_blocks(
    name: str, given: Iterable[str], header: ClearHeader, bias: bool | None = None
) -> list[tuple[Stream, int]]:
    """The blocks among canonical names; these and the header are those of a CLEAR file of the family.

    Args:
        bias: Whether biases are expected; None if as in the family.
    """
    metadata = header.metadata()
    for key in ("clear.radius", "clear.down_factor", "clear.lora_rank"):
        header_number(name, metadata, key)
    header_kind(name, metadata)
    trained, given = trained_set(header.family, name), set(given)
    doubles, singles = block_counts(given)
    counts = doubles, singles if "single" in trained.streams else 0
    if bias and not trained.has_bias:
        raise ClearFileError(f"{name} was not written: biases are given, but {trained.family}'s layers have none.")
    expected = set(trained_names(*counts, trained.has_bias if bias is None else bias))
    odd = sorted(expected ^ given)
    if not expected:
        raise ClearFileError(
            f"{name} was not written: none of its {len(given)} tensors is one that CLEAR trains; expected names like "
            "transformer_blocks.0.attn.to_q.weight."
        )
    if odd:
        raise ClearFileError(
            f"{name} was not written: {len(odd)} tensors are missing or not CLEAR's ({first_few(odd, len(odd))})."
        )
    return [(stream, index) for stream, count in zip(STREAMS, counts, strict=True) for index in range(count)]


def _checked_spatial(
    name: str,
    spatial_weights: Mapping[tuple[Stream, int], Tensor],
    blocks: list[tuple[Stream, int]],
    header: ClearHeader,
) -> dict[str, Tensor]:
    """Spatial weights by canonical name; one of (d, d) for every block, or none if nothing is pooled."""
    d = header.down_factor
    pooled = blocks if d > 1 else []
    if set(spatial_weights) != set(pooled):
        raise ClearFileError(
            f"{name} was not written: down factor {d} needs {len(pooled)} spatial weights, "
            f"{len(spatial_weights)} are given."
        )
    spatial = {spatial_name(*block): weight for block, weight in spatial_weights.items()}
    for key, weight in spatial.items():
        if tuple(weight.shape) != (d, d):
            raise ClearFileError(f"{name} was not written: {key} is {dims(weight.shape)}, expected {d} x {d}.")
    return spatial


def _write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    spatial: Mapping[str, Tensor],
    header: ClearHeader,
    dtype: torch.dtype | None,
    force: bool,
    on_tensor: OnTensor | None,
) -> ClearFile:
    """Writes tensors and spatial weights by their keys in the file, and reads the file back."""
    name, d = printable(Path(path).name), header.down_factor
    contents = {key: (dtype or tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
    contents |= dict.fromkeys(spatial, (torch.float32, (1, 1, 1, d, 1, d, 1)))

    def make(key: str) -> Tensor:
        tensor = spatial[key] if key in spatial else tensors[key]
        # Checked in the file's own dtype: a finite float32 value can be infinite in float16.
        tensor = tensor.detach().to(contents[key][0])
        if not finite(tensor):
            raise ClearFileError(f"{name} was not written: {key} has NaN or infinite values.")
        return tensor

    write_safetensors(path, contents, make, header.metadata(), force=force, on_tensor=on_tensor, check=read_clear_file)
    return read_clear_file(path)
