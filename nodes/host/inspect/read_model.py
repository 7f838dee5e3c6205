"""Reads a model in the host into plain values for CLEARInspect."""

from __future__ import annotations

from dataclasses import replace

import comfy.model_management
from comfy.model_patcher import ModelPatcher

from ....clear_core.inspection.facts import Inspection, ModelFacts, Size
from ....clear_core.layout import TOKEN_PIXELS
from ....clear_core.sdedit import Stage, choose_tiles, plan_stages
from ..model.family import model_shape
from ..model.memory_plan import memory_plan
from ..model.read import backend_of, clear_of, compute_dtype, weights_of
from ..model.throughput import last_throughput
from ..pack import versions
from .other_patches import other_patches


def inspect_model(model: ModelPatcher, source: Size, upscale_by: float, origin: str, batch: int = 1) -> Inspection:
    """Everything that is known of a model at one size.

    Args:
        source: (height, width) in px of the input.
        upscale_by: Factor on both sides.
        origin: Where ``source`` comes from: "picture", "latent" or "nothing connected".

    Raises:
        ValueError: CLEAR does not work on the model; the sentence says why.
    """
    facts = model_facts(model)
    stages = plan_stages(*source, upscale_by=upscale_by)
    patch = clear_of(model)
    inspection = Inspection(
        size=stages[-1].padded,
        origin=origin,
        model=facts,
        settings=patch.settings if patch else None,
        weights=weights_of(patch),
        device=comfy.model_management.get_torch_device_name(model.load_device),
        device_bytes=comfy.model_management.get_total_memory(model.load_device),
        pace=last_throughput(),
        tiles=tile_words(model, stages[-1], batch),
        stages=stage_words(stages),
        others=other_patches(model, patch),
        versions=versions(),
        batch=batch,
    )
    return replace(inspection, backend=backend_of(model, inspection.effective))


def model_facts(model: ModelPatcher) -> ModelFacts:
    """Facts about the model itself."""
    return ModelFacts(model_shape(model), memory_plan(model), dtype_name(model))


def dtype_name(model: ModelPatcher) -> str:
    """The dtype that the model computes in and, if it differs, that it is stored in."""
    computed, stored = (str(dtype).removeprefix("torch.") for dtype in (compute_dtype(model), model.model.get_dtype()))
    return computed if computed == stored else f"{computed} (stored in {stored})"


def tile_words(model: ModelPatcher, stage: Stage, batch: int) -> str:
    """The tiles of CLEARUpscale for this frame with its default settings."""
    total = comfy.model_management.get_total_memory(model.load_device)
    tiles = choose_tiles(stage.grid, memory=memory_plan(model), total=total, batch=batch)
    if tiles.is_whole:
        return "the whole frame at once"
    return f"{len(tiles.tiles)} tiles of {tiles.tile[1] * TOKEN_PIXELS} x {tiles.tile[0] * TOKEN_PIXELS} px"


def stage_words(stages: tuple[Stage, ...]) -> str:
    """The sizes of CLEARUpscale's stages, or nothing if the picture is not enlarged."""
    if not stages[-1].enlarges:
        return ""
    sizes = [stages[0].source, *(stage.size for stage in stages)]
    return " to ".join(f"{width} x {height}" for height, width in sizes) + " px"
