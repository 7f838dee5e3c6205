"""Where the trained layers of a family are in a diffusers model, under all that other code wraps around or fuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..weights import TrainedSet
from ..weights.naming import DIFFUSERS, QKV, STREAMS, TRAINED, trained_name


def transformer_of(target: Any) -> Any:
    """The model itself of a pipeline, and of what torch.compile or PEFT wraps around one."""
    target = getattr(target, "transformer", target)
    while True:
        inner = getattr(target, "_orig_mod", None)
        if inner is None and hasattr(target, "get_base_model"):
            inner = target.get_base_model()
        if inner is None:
            return target
        target = inner


@dataclass(frozen=True)
class Place:
    """A tensor of the model, or rows of it, that one tensor of the file belongs to.

    Attributes:
        path: Its name in the model, for messages.
        layer: The layer itself, under all that is wrapped around it.
        merged: Whether LoRA adapters are merged into it.
        end: "weight" or "bias".
        row: Index among the parts that the layer stacks; None if it stacks none.
    """

    path: str
    layer: Any
    merged: bool
    end: str
    row: int | None


def places_of(transformer: Any, trained: TrainedSet) -> dict[str, list[Place]]:
    """Where the tensors of a family are in a model, by canonical name; two places if a layer is there fused and apart.

    Raises:
        ValueError: The model has no such layer.
    """
    places: dict[str, list[Place]] = {}
    for stream in STREAMS:
        stem = DIFFUSERS.blocks[stream]
        for index, block in enumerate(getattr(transformer, stem, ())):
            attn = getattr(block, "attn", None)
            for part in TRAINED[stream]:
                path = f"{stem}.{index}.attn"
                found = list(_layers_of(attn, part, trained.fused.get(stream)))
                if not found:
                    raise ValueError(
                        f"{path}.{part} is not in this {type(transformer).__name__}, whose block is a "
                        f"{type(block).__name__}; load the CLEAR file onto a model with diffusers' own blocks."
                    )
                for end in trained.ends:
                    places[trained_name(stream, index, part, end)] = [
                        Place(f"{path}.{own}.{end}", *_base_layer(layer), end, row) for own, layer, row in found
                    ]
    return places


def _layers_of(attn: Any, part: str, fused: str | None) -> Iterator[tuple[str, Any, int | None]]:
    """(name, layer, row) of a trained part within an attention.

    Args:
        fused: Layer that holds q, k and v in this family, as ``attn.<name>``.
    """
    # to_qkv is what fuse_qkv_projections makes, beside the layers that it leaves for later.
    stacked = fused.removeprefix("attn.") if fused else "to_qkv"
    layer = getattr(attn, stacked, None) if part in QKV else None
    if layer is not None:
        yield stacked, layer, QKV.index(part)
    stem, _, index = part.partition(".")
    layer = None if fused else getattr(attn, stem, None)
    if layer is not None:
        yield part, layer[int(index)] if index else layer, None


def _base_layer(layer: Any) -> tuple[Any, bool]:
    """(the layer itself, whether adapters are merged into it), under what PEFT or torch.compile wraps around it."""
    merged = False
    while True:
        merged = merged or bool(getattr(layer, "merged", False))
        inner = getattr(layer, "base_layer", None)
        inner = getattr(layer, "_orig_mod", None) if inner is None else inner
        if inner is None:
            return layer, merged
        layer = inner
