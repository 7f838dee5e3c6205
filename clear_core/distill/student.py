"""The student: a copy of the teacher with windows, whose image projections train and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..integrations.diffusers import apply_clear
from ..spec import ClearSpec
from ..weights import ClearFile, ClearHeader, read_clear_file, save_clear_file
from ..weights.naming import STREAMS, Stream, spatial_name, trained_names

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel


def depth(model: FluxTransformer2DModel) -> tuple[int, int]:
    """(double, single) number of blocks."""
    return len(model.transformer_blocks), len(model.single_transformer_blocks)


def spatial_blocks(model: FluxTransformer2DModel) -> list[tuple[Stream, int]]:
    """(stream, index) of every block."""
    return [(stream, index) for stream, count in zip(STREAMS, depth(model), strict=True) for index in range(count)]


def trained_set(model: FluxTransformer2DModel, spec: ClearSpec) -> list[str]:
    """Names of the trained parameters: the image stream's projections, and the pooling weights if there are any."""
    names = list(trained_names(*depth(model)))
    if spec.pools:
        names += [spatial_name(*block) for block in spatial_blocks(model)]
    return names


def make_student(
    teacher: FluxTransformer2DModel, spec: ClearSpec, *, backend: str = "auto", share: bool = True
) -> FluxTransformer2DModel:
    """A copy of the teacher with windows; the teacher and the untrained part of the student are frozen.

    Args:
        backend: As in :func:`clear_core.clear_attention`.
        share: Whether frozen weights are the teacher's own tensors, which saves a second model's memory; not
            possible if a wrapper shards them (FSDP).

    Returns:
        The student; trained parameters are float32, the rest keeps the teacher's dtype.
    """
    teacher.requires_grad_(False)
    trained = set(trained_names(*depth(teacher)))
    kept = [p for name, p in teacher.named_parameters() if name not in trained] if share else []
    student = copy.deepcopy(teacher, {id(p): p for p in kept})
    # Fixed for the whole training: the teacher cannot teach sizes beyond its own training.
    apply_clear(student, spec, ntk_factor=1.0, proportional_attention="off", backend=backend)
    names = set(trained_set(student, spec))
    for name, parameter in student.named_parameters():
        if name in names:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
    return student


def load_weights(student: FluxTransformer2DModel, path: Path) -> ClearFile:
    """Puts the tensors of a CLEAR file into a student.

    Raises:
        ClearFileError: The file is not CLEAR's or belongs to another model.
    """
    file = read_clear_file(path)
    file.fits(student.config["num_attention_heads"] * student.config["attention_head_dim"], *depth(student))
    state = dict(file.tensors())
    if file.kind == "delta":
        base = student.state_dict()
        state = {name: base[name] + tensor for name, tensor in state.items()}
    d = file.down_factor
    state |= {
        spatial_name(*block): weight.reshape(1, 1, 1, d, 1, d, 1) for block, weight in file.spatial_weights().items()
    }
    _, unknown = student.load_state_dict(state, strict=False)
    if unknown:
        raise ValueError(
            f"{file.name} holds {unknown[0]}, which the model does not have; give the radius and down "
            "factor of its training."
        )
    return file


def save_weights(
    path: Path,
    state: Mapping[str, Any],
    model: FluxTransformer2DModel,
    spec: ClearSpec,
    source: str,
    dtype: torch.dtype = torch.bfloat16,
) -> ClearFile:
    """Writes the trained part of a student's state dict as a CLEAR file.

    Args:
        state: The student's state dict; frozen tensors in it are ignored.
        source: Origin of the weights, one line, for the file's header.
    """
    tensors = {name: state[name] for name in trained_names(*depth(model))}
    d = spec.down_factor
    spatial = (
        {block: state[spatial_name(*block)].reshape(d, d) for block in spatial_blocks(model)} if spec.pools else {}
    )
    header = ClearHeader(spec.radius, d, source=source)
    return save_clear_file(path, tensors, spatial, header, dtype=dtype, force=True)


def file_name(spec: ClearSpec) -> str:
    """A name of the form of the published files: ``clear_local_<r>[_down_<d>].safetensors``."""
    return f"clear_local_{spec.radius}" + (f"_down_{spec.down_factor}" if spec.pools else "") + ".safetensors"
