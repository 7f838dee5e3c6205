"""Reads a model in the host into plain values for CLEARInspect."""

from __future__ import annotations

import comfy.model_management
from comfy.model_patcher import ModelPatcher

from ....clear_core.inspection.facts import Inspection, ModelFacts, Size
from ....clear_core.memory import activation_budget
from ....clear_core.sdedit import Stage, choose_tiles, plan_stages
from ..model.flux_shape import flux_shape
from ..model.memory import activations_of
from ..model.read import backend_of, clear_of, compute_dtype, head_dim_of, weights_of
from ..model.throughput import last_throughput
from ..pack import versions
from .other_patches import other_patches


def inspect_model(model: ModelPatcher, source: Size, upscale_by: float, origin: str, batch: int = 1) -> Inspection:
    """Everything that is known of a FLUX model for one size.

    Args:
        source: (height, width) in px of what comes in.
        upscale_by: How many times wider and higher the result is.
        origin: What ``source`` is: "picture", "latent" or "nothing connected".

    Raises:
        ValueError: The model is no FLUX.1; the sentence says so.
    """
    shape = flux_shape(model)
    stages = plan_stages(*source, upscale_by=upscale_by)
    patch = clear_of(model)
    facts = model_facts(model)
    settings = patch.settings if patch else None
    return Inspection(
        size=stages[-1].padded,
        origin=origin,
        model=facts,
        settings=settings,
        weights=weights_of(patch),
        dense_blocks=frozenset(
            index + (shape.num_double if kind == "single" else 0)
            for kind, index in (patch.dense_blocks if patch else ())
        ),
        backend=backend_of(model, patch, stages[-1].grid),
        device=comfy.model_management.get_torch_device_name(model.load_device),
        device_bytes=comfy.model_management.get_total_memory(model.load_device),
        pace=last_throughput(),
        tiles=tile_words(model, stages[-1], batch),
        stages=stage_words(stages),
        others=other_patches(model, patch),
        versions=versions(),
        batch=batch,
    )


def model_facts(model: ModelPatcher) -> ModelFacts:
    """What is known of the model itself."""
    shape = flux_shape(model)
    return ModelFacts(
        activations_of(model),
        shape.num_double,
        shape.num_single,
        head_dim_of(model),
        dtype_name(model),
        model.model_size(),
        shape.relative or "FLUX.1",
    )


def dtype_name(model: ModelPatcher) -> str:
    """What the model computes in and, where that differs, is stored in."""
    computed, stored = (str(dtype).removeprefix("torch.") for dtype in (compute_dtype(model), model.model.get_dtype()))
    return computed if computed == stored else f"{computed} (stored in {stored})"


def tile_words(model: ModelPatcher, stage: Stage, batch: int) -> str:
    """How CLEARUpscale would divide this frame here with its usual settings."""
    total = comfy.model_management.get_total_memory(model.load_device)
    tiles = choose_tiles(
        stage.grid, activations=activations_of(model), budget=activation_budget(total, model.model_size()), batch=batch
    )
    if tiles.is_whole:
        return "the whole frame at once"
    return f"{len(tiles.tiles)} tiles of {tiles.tile[1] * 16} x {tiles.tile[0] * 16} px"


def stage_words(stages: tuple[Stage, ...]) -> str:
    """The sizes that CLEARUpscale would go through, or nothing where there is nothing to enlarge."""
    if not stages[-1].enlarges:
        return ""
    sizes = [stages[0].source, *(stage.size for stage in stages)]
    return " to ".join(f"{width} x {height}" for height, width in sizes) + " px"
