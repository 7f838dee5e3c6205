"""CLEAR minus its base: what distillation added, to be added to any derivative of that base.

Putting whole slices into a fine-tune (Krea, Kontext, Fill, a merged LoRA) throws away what it learned there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from .container import open_safetensors
from .errors import ClearFileError, dims, first_few, shown
from .naming import Stored, recognise, spatial_name
from .reader import ClearFile, TensorMap, finite, read_clear_file
from .writer import OnTensor, clear_header, write_safetensors


class Base:
    """The trained slices of a whole FLUX, by canonical name, from one file or from the shards of one.

    Names are diffusers' or ComfyUI's (Black Forest Labs'), with or without a prefix; everything else in the files is
    left alone.

    Raises:
        ClearFileError: A slice is missing, has another shape than the CLEAR file's, or is stored in 8 bits.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]], clear: ClearFile) -> None:
        self.label = shown(" + ".join(Path(path).name for path in paths), 200)
        self.places: dict[str, TensorMap] = {}
        for path in paths:
            name, handle = shown(Path(path).name), open_safetensors(path)
            names = recognise(handle.keys())
            if names is None:
                continue
            held = {tensor: at for tensor, at in names.tensors.items() if tensor in clear.stored}
            try:
                for at in {at.key: at for at in held.values()}.values():
                    check_slice(name, handle.get_slice(at.key), at, clear.width)
            except SafetensorError as error:
                raise ClearFileError(f"{name} cannot be read: {shown(error)}.") from None
            self.places |= dict.fromkeys(held, TensorMap(name, handle, held, clear.width))
        missing = [name for name in clear.stored if name not in self.places]
        if missing:
            raise ClearFileError(
                f"{self.label} is not the base of {clear.name}: {len(missing)} of its "
                f"{len(clear.stored)} trained tensors are not there "
                f"({first_few(missing, len(missing))}); expected a whole FLUX.1-dev."
            )

    def __getitem__(self, name: str) -> Tensor:
        return self.places[name][name]


def check_slice(name: str, part: object, at: Stored, width: int) -> None:
    shape, dtype = tuple(part.get_shape()), part.get_dtype()
    least = at.parts * width
    columns = (width,) if at.key.endswith(".weight") else ()
    # Below q, k and v a linear1 has the MLP's rows, so only there may be more.
    rows = shape[0] >= least if shape and ".linear1." in at.key else shape[:1] == (least,)
    if not rows or shape[1:] != columns:
        raise ClearFileError(
            f"{name} is of another size than the CLEAR file: {shown(at.key)} is {dims(shape)}, "
            f"expected {dims((least, *columns))}."
        )
    if dtype not in ("F64", "F32", "F16", "BF16"):
        raise ClearFileError(
            f"{name} is stored as {shown(dtype)}; a difference needs the base in 16 or 32 bits (flux1-dev.safetensors)."
        )


def read_pair(base: Sequence[str | os.PathLike[str]], clear: str | os.PathLike[str]) -> tuple[Base, ClearFile]:
    """A base and the CLEAR file trained from it, held against each other.

    Raises:
        ClearFileError: One does not fit the other, the CLEAR file is a delta already, stored in 8 bits, or does not
            say its radius.
    """
    file = read_clear_file(clear)
    if file.kind == "delta":
        raise ClearFileError(f"{file.name} is a delta already; expected the trained weights themselves.")
    if any(dtype.itemsize == 1 for dtype in file.dtypes):
        raise ClearFileError(f"{file.name} is stored in 8 bits; a difference needs 16 or 32 bits.")
    if file.radius is None:
        raise ClearFileError(f"{file.name} does not say its radius; give it a name like clear_local_16.safetensors.")
    return Base(base, file), file


def difference(base: Base, clear: TensorMap, name: str) -> Tensor:
    """CLEAR minus base in float32, (width, width) or (width,)."""
    return clear[name].float() - base[name].float()


def save_delta(
    base: Sequence[str | os.PathLike[str]],
    clear: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    force: bool = False,
    on_tensor: OnTensor | None = None,
) -> ClearFile:
    """Writes CLEAR minus base as a CLEAR file of kind "delta".

    It is stored in the wider dtype of the two. In bf16 that loses nothing where a weight changed by less than half of
    itself, and elsewhere no more than bf16 weights do.

    Args:
        base: The file of the model it was trained from (or its shards), in diffusers' or ComfyUI's names.
        clear: The CLEAR file.
        out: Where to write.
        force: Whether an existing file may be replaced.

    Raises:
        ClearFileError: The two do not belong together, or ``out`` cannot be written.
    """
    model, file = read_pair(base, clear)
    tensors, spatial = file.tensors(), {spatial_name(*block): w for block, w in file.spatial_weights().items()}
    d = file.down_factor
    plan = {
        name: (torch.promote_types(tensors[name].dtype, model[name].dtype), tuple(tensors[name].shape))
        for name in tensors
    }
    plan |= dict.fromkeys(spatial, (torch.float32, (1, 1, 1, d, 1, d, 1)))

    def make(name: str) -> Tensor:
        if name in spatial:
            return spatial[name]
        numbers = difference(model, tensors, name)
        if not finite(numbers.to(plan[name][0])):
            raise ClearFileError(
                f"{file.name} minus {model.label} is NaN or infinite in {name}; one of the two is damaged."
            )
        return numbers

    header = clear_header("delta", file.radius, d, f"{file.name} minus {model.label}")
    write_safetensors(out, plan, make, header, force=force, on_tensor=on_tensor, check=read_clear_file)
    return read_clear_file(out)
