"""Writing safetensors files tensor by tensor, and CLEAR files in the published form with their header.

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

from .errors import ClearFileError, dims, first_few, shown
from .naming import Stream, spatial_name, trained_name, trained_names
from .reader import DTYPES, ClearFile, Kind, finite, header_kind, header_number, read_clear_file

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# Called with (tensors written, tensors in all).
OnTensor = Callable[[int, int], None]


def write_safetensors(
    path: str | os.PathLike[str],
    plan: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    make: Callable[[str], Tensor],
    header: Mapping[str, str],
    *,
    force: bool = False,
    on_tensor: OnTensor | None = None,
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Writes a safetensors file with one tensor in memory at a time.

    The file appears under its name when it is whole, on disk and checked; until then it is a temporary file beside it,
    removed when anything fails.

    Args:
        path: Where to write; its folder must exist.
        plan: dtype and shape of each tensor by key.
        make: Gives the tensor of a key, of the planned shape; its dtype is converted to the planned one.
        header: Text for the file's header.
        force: Whether an existing file may be replaced.
        check: Called with the temporary file; what it raises stops the file from appearing.

    Raises:
        ClearFileError: The file exists and ``force`` is not set, or it cannot be written.
    """
    path = Path(path)
    if path.exists() and not force:
        raise ClearFileError(f"{shown(path.name)} exists already; choose another name or say --force to replace it.")
    offset, entries = 0, {}
    # Wide numbers first, so that each tensor starts at a multiple of its item size.
    keys = sorted(plan, key=lambda key: (-plan[key][0].itemsize, key))
    for key in keys:
        dtype, shape = plan[key]
        end = offset + dtype.itemsize * torch.Size(shape).numel()
        entries[key] = {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps({"__metadata__": dict(header), **entries}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # Not .safetensors: what a killed process leaves must not turn up in anybody's list of weights.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for count, key in enumerate(keys, 1):
                dtype, shape = plan[key]
                tensor = make(key).to("cpu", dtype).reshape(shape).contiguous()
                file.write(memoryview(tensor.flatten().view(torch.uint8).numpy()))
                if on_tensor:
                    on_tensor(count, len(keys))
            file.flush()
            os.fsync(file.fileno())
        if check:
            check(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise ClearFileError(
            f"{shown(path.name)} cannot be written: {shown(error.strerror or error)} ({shown(path.parent)})."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return path


def clear_header(kind: Kind, radius: int, down_factor: int, source: str) -> dict[str, str]:
    """The header by which ``read_clear_file`` knows a file of ours."""
    return {
        "format": "pt",
        "clear.kind": kind,
        "clear.radius": str(radius),
        "clear.down_factor": str(down_factor),
        "clear.source": source,
    }


def save_clear_file(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    spatial_weights: Mapping[tuple[Stream, int], Tensor],
    radius: int,
    down_factor: int,
    kind: Kind = "replace",
    source: str = "",
    *,
    dtype: torch.dtype | None = None,
    force: bool = False,
    on_tensor: OnTensor | None = None,
) -> ClearFile:
    """Writes a trained state in the published format, with what the published files lack in its header.

    Args:
        path: Where to write.
        tensors: Canonical name to trained tensor, (width, width) or (width,). Names that are not CLEAR's are an
            error: choose them with ``naming.recognise`` first.
        spatial_weights: (stream, block index) to (d, d), for every block; empty where ``down_factor`` is 1.
        radius: Window radius in tokens it was trained with.
        down_factor: d.
        kind: "replace" or "delta".
        source: Where it comes from, one line of words.
        dtype: Of the trained weights in the file; None keeps each one's own. Spatial weights are float32.
        force: Whether an existing file may be replaced.

    Returns:
        The file as read back.

    Raises:
        ClearFileError: Names, shapes or numbers (NaN, infinite) are not those of a CLEAR file.
    """
    name = shown(Path(path).name)
    header = clear_header(kind, radius, down_factor, source)
    header_number(name, header, "clear.radius")
    header_kind(name, header)
    indices: dict[str, int] = {}
    for stream in ("double", "single"):
        indices[stream] = 0
        while trained_name(stream, indices[stream], "to_q", "weight") in tensors:
            indices[stream] += 1
    expected = set(trained_names(indices["double"], indices["single"]))
    if expected != set(tensors):
        odd = sorted(expected.symmetric_difference(tensors))
        raise ClearFileError(
            f"{name} was not written: {len(odd)} tensors are missing or not CLEAR's ({first_few(odd, len(odd))})."
        )
    blocks = {(stream, index) for stream in ("double", "single") for index in range(indices[stream])}
    if set(spatial_weights) != (blocks if down_factor > 1 else set()):
        needed = len(blocks) if down_factor > 1 else 0
        raise ClearFileError(
            f"{name} was not written: down factor {down_factor} needs {needed} spatial weights, "
            f"{len(spatial_weights)} are given."
        )
    d = down_factor
    spatial = {spatial_name(*block): weight for block, weight in spatial_weights.items()}
    for key, weight in spatial.items():
        if tuple(weight.shape) != (d, d):
            raise ClearFileError(f"{name} was not written: {key} is {dims(weight.shape)}, expected {d} x {d}.")
    plan = {key: (dtype or tensor.dtype, tuple(tensor.shape)) for key, tensor in tensors.items()}
    plan |= dict.fromkeys(spatial, (torch.float32, (1, 1, 1, d, 1, d, 1)))

    def make(key: str) -> Tensor:
        tensor = spatial[key] if key in spatial else tensors[key]
        # In the file's own dtype: a float32 number can be infinite in float16.
        tensor = tensor.detach().to(plan[key][0])
        if not finite(tensor):
            raise ClearFileError(f"{name} was not written: {key} has NaN or infinite numbers.")
        return tensor

    write_safetensors(path, plan, make, header, force=force, on_tensor=on_tensor, check=read_clear_file)
    return read_clear_file(path)
