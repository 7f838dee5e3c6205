"""Writes safetensors files tensor by tensor, and CLEAR files in the published format with a header.

The safetensors package writes from memory only; a delta or a converted state is 3.6 to 7.2 GB.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from .errors import ClearFileError, dims, first_few, printable
from .header import DTYPES, ClearHeader, header_kind, header_number
from .naming import ENDS, STREAMS, TRAINED, Stream, spatial_name, trained_name
from .reader import ClearFile, finite, read_clear_file

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
    """Writes a trained state in the published format, with a header that the published files lack.

    Args:
        path: File to write.
        tensors: Canonical name to trained tensor, (width, width) or (width,). Other names are an error: select
            CLEAR's with ``naming.recognise`` first.
        spatial_weights: (stream, block index) to (d, d), for every block; empty if the down factor is 1.
        header: Radius, down factor d, kind and source.
        dtype: dtype of the trained weights in the file; None keeps each one's own. Spatial weights are float32.
        force: Whether an existing file may be replaced.

    Returns:
        The file as read back.

    Raises:
        ClearFileError: Names, shapes or header are not those of a CLEAR file, elements are NaN or infinite, or the
            file cannot be written.
    """
    name = printable(Path(path).name)
    metadata, d = header.metadata(), header.down_factor
    header_number(name, metadata, "clear.radius")
    header_kind(name, metadata)
    blocks: list[tuple[Stream, int]] = [
        (stream, index) for stream in STREAMS for index in range(block_count(stream, tensors))
    ]
    expected = {trained_name(*block, part, end) for block in blocks for part in TRAINED[block[0]] for end in ENDS}
    if expected != set(tensors):
        odd = sorted(expected.symmetric_difference(tensors))
        raise ClearFileError(
            f"{name} was not written: {len(odd)} tensors are missing or not CLEAR's ({first_few(odd, len(odd))})."
        )
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
    contents = {key: (dtype or tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
    contents |= dict.fromkeys(spatial, (torch.float32, (1, 1, 1, d, 1, d, 1)))

    def make(key: str) -> Tensor:
        tensor = spatial[key] if key in spatial else tensors[key]
        # Checked in the file's own dtype: a finite float32 value can be infinite in float16.
        tensor = tensor.detach().to(contents[key][0])
        if not finite(tensor):
            raise ClearFileError(f"{name} was not written: {key} has NaN or infinite values.")
        return tensor

    write_safetensors(path, contents, make, metadata, force=force, on_tensor=on_tensor, check=read_clear_file)
    return read_clear_file(path)


def block_count(stream: Stream, tensors: Mapping[str, Tensor]) -> int:
    """Number of consecutive blocks of a stream, from index 0, with tensors among ``tensors``."""
    count = 0
    while trained_name(stream, count, TRAINED[stream][0], ENDS[0]) in tensors:
        count += 1
    return count
