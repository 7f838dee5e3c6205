"""Puts the trained weights of a CLEAR file onto a diffusers model, whatever else was done to the model before.

    loaded = load_clear(pipe, "clear_local_16.safetensors")
    with apply_clear(pipe.transformer, loaded.spec, spatial_weights=loaded.spatial_weights):
        pipe(...)

``load_state_dict(strict=False)`` would skip what it does not find by its name, without a word: layers under LoRA
adapters, fused projections, compiled and quantised models. Here every tensor of the file finds its place, or nothing is
changed and one sentence says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..spec import ClearSpec
from ..weights import ClearFile, read_clear_file
from ..weights.naming import DIFFUSERS, Stream
from .diffusers_layers import Place, places_of, transformer_of
from .diffusers_model import attention_modules, shape_of
from .diffusers_offload import Homes
from .diffusers_processor import ClearAttnProcessor

Write = Callable[[Tensor], None]
"""Gives one tensor of the model its new value, from a tensor of the file."""

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
"""dtypes that take any value by rounding alone. float8: what layerwise casting stores a model in."""


@dataclass(frozen=True)
class Loaded:
    """What was put onto a model.

    Attributes:
        file: The CLEAR file.
        layers: Number of the model's layers that changed: 190 of FLUX.1-dev, 4 in a double block and 3 in a single one.
    """

    file: ClearFile
    layers: int

    @property
    def spec(self) -> ClearSpec:
        """The windows that the file was trained with.

        Raises:
            ValueError: It does not say its radius.
        """
        if self.file.radius is None:
            raise ValueError(
                f"{self.file.name} does not say which window radius it was trained for; build the ClearSpec from the "
                "radius of its training yourself."
            )
        return ClearSpec(self.file.radius, self.file.down_factor)

    @property
    def spatial_weights(self) -> dict[tuple[Stream, int], Tensor]:
        """Its pooling weights, for ``apply_clear``; empty if it pools nothing."""
        return self.file.spatial_weights()

    def __str__(self) -> str:
        done = "changed" if self.file.adds else "replaced"
        windows = "unknown radius" if self.file.radius is None else str(self.spec)
        return f"{self.file.name}: {self.layers} layers of {self.file.family} {done}, for windows of {windows}"


_held: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Name of the file whose weights a model has."""


def load_clear(target: Any, file: ClearFile | str | os.PathLike[str]) -> Loaded:
    """Puts a CLEAR file's trained weights onto a diffusers model. They stay; windows are ``apply_clear``'s.

    Trained weights replace, a delta and low-rank factors are added, in float32; the result is rounded to the dtype of
    the model's layer. LoRA adapters on the model stay as they are and add to it. Fused projections
    (``fuse_qkv_projections``) get the new values too, as do pooling weights of a CLEAR that is on already. A layer in
    bitsandbytes' 4 bits is quantised anew by its own settings, from the file's values, or from its own plus the change.

    Args:
        target: A pipeline with a ``transformer``, or such a model, plain, compiled or offloaded.
        file: A CLEAR file of the model's family and size, or its path.

    Raises:
        ClearFileError: The file is not one, holds NaN, or was made for another family or size.
        ImportError: diffusers is not installed.
        TypeError: The model is not a transformer of a known family.
        ValueError: A layer cannot take the weights, or the model has weights that a change would be added to. Nothing
            was changed then.
    """
    transformer = transformer_of(target)
    shape = shape_of(transformer)
    file = file if isinstance(file, ClearFile) else read_clear_file(file)
    file.fits(shape.width, shape.num_double, shape.num_single, shape.family.name)
    if file.adds and transformer in _held:
        raise ValueError(
            f"{file.name} would be added to a model that has the weights of {_held[transformer]} already; load the "
            "model anew first."
        )
    tensors, homes = file.tensors(), Homes(transformer)
    places = places_of(transformer, file.trained)
    plan = {name: [_writer(place, file, homes) for place in places[name]] for name in places if name in tensors}
    pools = list(_pooling_writes(transformer, file, homes))
    file.check_finite()
    with torch.no_grad():
        for name, writes in plan.items():
            tensor = tensors[name]
            for write in writes:
                write(tensor)
        for write, weight in pools:
            write(weight)
    _held[transformer] = file.name
    return Loaded(file, len({name.rpartition(".")[0] for name in plan}))


def _writer(place: Place, file: ClearFile, homes: Homes) -> Write:
    """What puts a tensor of the file into its place; nothing is written yet.

    Raises:
        ValueError: The place cannot take it.
    """
    held = getattr(place.layer, place.end, None)
    shape = (file.width, file.width) if place.end == "weight" else (file.width,)
    if held is None:
        raise ValueError(f"{place.path} is not in this model, but {file.name} has it; load a file made for the model.")
    if place.merged and not file.adds:
        raise ValueError(
            f"{place.path} has LoRA adapters merged into it, which trained weights would overwrite; call "
            "unfuse_lora() first, and fuse_lora() again afterwards."
        )
    state = getattr(held, "quant_state", None)
    if type(held).__name__ == "Params4bit" and state is not None and held.device.type != "meta":
        if place.row is None and tuple(state.shape) == shape:
            return partial(_write_4bit, place.layer, file.adds)
        raise ValueError(
            f"{place.path} holds other rows too, in 4 bits, which would be quantised a second time; load the CLEAR "
            "file before the projections are fused or the model is quantised."
        )
    if type(held) not in (Tensor, nn.Parameter) or held.dtype not in FLOATS:
        raise ValueError(
            f"{place.path} is stored as {type(held).__module__.partition('.')[0]}'s {type(held).__name__} "
            f"({str(held.dtype).removeprefix('torch.')}), into which new values cannot be put exactly; load the CLEAR "
            "file onto the model in 16 bits, and quantise or distribute that."
        )
    rows = slice(None) if place.row is None else slice(place.row * file.width, (place.row + 1) * file.width)
    expected = (max(3 * file.width, held.shape[0]), *shape[1:]) if place.row is not None else shape
    if tuple(held.shape) != expected:
        raise ValueError(
            f"{place.path} is {tuple(held.shape)}, and {file.name} has {shape} for it; load a file made for the model."
        )
    return partial(_write, [home[rows] for home in homes.of(place.path, place.layer, place.end)], file.adds)


def _write(homes: list[Tensor], adds: bool, tensor: Tensor) -> None:
    """In place, so that compiled graphs and offloading keep what they point to."""
    for own in homes:
        new = tensor
        if adds:
            wide = torch.promote_types(own.dtype, torch.float32)
            new = own.to(wide) + tensor.to(own.device, wide)
        own.copy_(new)


def _write_4bit(layer: Any, adds: bool, tensor: Tensor) -> None:
    """Quantises a weight anew, by the settings that its layer was quantised with."""
    from bitsandbytes.functional import dequantize_4bit

    old: Any = layer.weight
    state = old.quant_state
    if adds:
        tensor = dequantize_4bit(old.data, state).float() + tensor.to(old.device, torch.float32)
    # Its class is Params4bit, or one that grew from it.
    new: Any = type(old)(
        tensor.to(old.device, state.dtype).contiguous(),
        requires_grad=old.requires_grad,
        blocksize=state.blocksize,
        compress_statistics=state.nested,
        quant_type=state.quant_type,
        quant_storage=old.quant_storage,
        module=layer,
    )
    layer.weight = new.to(old.device)
    layer.quant_state = layer.weight.quant_state


def _pooling_writes(transformer: Any, file: ClearFile, homes: Homes) -> Iterator[tuple[Write, Tensor]]:
    """The pooling weights of a CLEAR that is on the model already, each with its new value.

    Raises:
        ValueError: It does not pool as the file was trained to.
    """
    weights: Mapping[tuple[Stream, int], Tensor] = file.spatial_weights()
    d = file.down_factor
    for block, attn in attention_modules(transformer) if weights else ():
        ours = getattr(attn, "processor", None)
        if not isinstance(ours, ClearAttnProcessor):
            continue
        held = ours.spatial_weight
        if held is None or held.numel() != d * d:
            raise ValueError(
                f"CLEAR on this transformer does not pool {d} x {d} tokens as {file.name} was trained to; remove() it, "
                "and apply it after load_clear with the spec and spatial_weights that it returns."
            )
        path = f"{DIFFUSERS.blocks[block[0]]}.{block[1]}.{DIFFUSERS.spatial[block[0]]}"
        yield (
            partial(_write, homes.of(path, ours, "spatial_weight"), False),
            weights[block].reshape(1, 1, 1, d, 1, d, 1),
        )
