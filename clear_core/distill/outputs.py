"""What a training leaves: whole weights as the published files hold them, a delta, or a LoRA file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..spec import ClearSpec
from ..weights import ClearFile, ClearHeader, save_clear_file
from ..weights.naming import Stream, spatial_name
from ..weights.writer import save_clear_lora
from .pair import Pair, Place, blocks_of

FORMS = ("merged", "delta", "lora")
"""Forms of the weights: in place of the model's own, added to them, or the two factors of what is added."""


def file_name(spec: ClearSpec, form: str = "merged") -> str:
    """A name of the form of the published files: ``clear_local_<r>[_down_<d>][_<form>].safetensors``."""
    pooled = f"_down_{spec.down_factor}" if spec.pools else ""
    return f"clear_local_{spec.radius}{pooled}{'' if form == 'merged' else f'_{form}'}.safetensors"


def check_forms(forms: Iterable[str], rank: int | None) -> None:
    """Refuse forms that a training cannot be written in; before it runs.

    Args:
        forms: Of :data:`FORMS`.
        rank: Of the training; None for whole weights.

    Raises:
        ValueError: A form is not known, or is a LoRA of whole weights.
    """
    for form in forms:
        if form not in FORMS:
            raise ValueError(f"form is {form!r}; expected one of {', '.join(FORMS)}.")
        if form == "lora" and rank is None:
            raise ValueError("form is 'lora', but whole weights are trained; choose merged or delta, or set a rank.")


def save_weights(
    path: Path,
    pair: Pair,
    weights: Mapping[str, Tensor],
    source: str,
    *,
    form: str = "merged",
    dtype: torch.dtype = torch.bfloat16,
) -> ClearFile:
    """Writes trained weights as a CLEAR file.

    Args:
        pair: What was trained, for the model's own weights.
        weights: The trained tensors by canonical name, as ``checkpoint.weights_of`` gives them.
        source: Origin of the weights, one line, for the file's header.
        form: Of :data:`FORMS`. A LoRA needs low-rank training.

    Raises:
        ValueError: The form is not known, or is a LoRA of whole weights.
    """
    check_forms([form], pair.rank)
    spec, family = pair.spec, pair.shape.family.name
    d = spec.down_factor
    spatial: dict[tuple[Stream, int], Tensor] = {}
    if spec.pools:
        spatial = {block: weights[spatial_name(*block)].reshape(d, d) for block in blocks_of(pair.shape)}
    if form == "lora":
        factors = {
            place.name: (weights[f"{place.name}.lora_A.weight"], weights[f"{place.name}.lora_B.weight"])
            for place in pair.places
        }
        biases = {
            name.removesuffix(".lora_B.bias"): tensor
            for name, tensor in weights.items()
            if name.endswith(".lora_B.bias")
        }
        header = ClearHeader(spec.radius, d, "lora", source, family=family)
        return save_clear_lora(path, factors, biases, spatial, header, dtype=dtype, force=True)
    tensors: dict[str, Tensor] = {}
    for place in pair.places:
        tensors |= whole_layer(pair, place, weights, minus_base=form == "delta")
    kind = "delta" if form == "delta" else "replace"
    header = ClearHeader(spec.radius, d, kind, source, family=family)
    return save_clear_file(path, tensors, spatial, header, dtype=dtype, force=True)


def whole_layer(pair: Pair, place: Place, weights: Mapping[str, Tensor], minus_base: bool) -> dict[str, Tensor]:
    """Weight and bias of one projection in float32, or their change by the training."""
    found = pair.original(place)
    base = {
        end: tensor.detach().to("cpu", torch.float32)
        for end, tensor in zip(("weight", "bias"), found, strict=True)
        if tensor is not None
    }
    name = place.name
    if pair.rank is None:
        trained = {end: weights[f"{name}.{end}"].float() for end in base}
        return {f"{name}.{end}": trained[end] - base[end] if minus_base else trained[end] for end in base}
    change = {"weight": weights[f"{name}.lora_B.weight"].float() @ weights[f"{name}.lora_A.weight"].float()}
    if "bias" in base:
        change["bias"] = weights[f"{name}.lora_B.bias"].float()
    return {f"{name}.{end}": change[end] if minus_base else base[end] + change[end] for end in base}
