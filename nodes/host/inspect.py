"""Reads a model in the host into plain values for CLEARInspect."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfyui_version import __version__ as host_version

from ...clear_core.attention import explain_backend
from ...clear_core.attention.choose import unavailable_reason
from ...clear_core.inspection.facts import Inspection, ModelFacts, Size, WeightsFacts
from ...clear_core.memory import activation_budget
from ...clear_core.sdedit import Stage, choose_tiles, plan_stages
from ...clear_core.weights import fingerprint
from .flux import flux_shape
from .memory import activations_of
from .others import other_patches
from .pace import last_pace
from .patch import KEY
from .version import pack_id
from .window import WindowPatch

HASH_NOTICE_BYTES = 100_000_000
"""Files above this get a progress bar while their fingerprint is taken."""


def clear_of(model: ModelPatcher) -> WindowPatch | None:
    """CLEAR's part of a model, or None."""
    patches = model.get_wrappers(WrappersMP.APPLY_MODEL, KEY)
    return patches[-1] if patches else None


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
        pace=last_pace(),
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


def head_dim_of(model: ModelPatcher) -> int:
    """Size of a head."""
    config = model.model.model_config.unet_config
    return config["hidden_size"] // config["num_heads"]


def compute_dtype(model: ModelPatcher) -> torch.dtype:
    """What the model computes in."""
    return model.model.manual_cast_dtype or model.model.get_dtype()


def dtype_name(model: ModelPatcher) -> str:
    """What the model computes in and, where that differs, is stored in."""
    computed, stored = (str(dtype).removeprefix("torch.") for dtype in (compute_dtype(model), model.model.get_dtype()))
    return computed if computed == stored else f"{computed} (stored in {stored})"


def backend_of(model: ModelPatcher, patch: WindowPatch | None, grid: tuple[int, int]) -> tuple[str, str]:
    """What computes the windows of this grid, and one sentence why."""
    if patch is None:
        return "dense", "It is the model's own attention, as there are no windows."
    settings = patch.settings
    case = (model.load_device, compute_dtype(model), head_dim_of(model))
    if settings.backend == "auto":
        return explain_backend(*case, grid, settings.spec.within(grid))
    reason = unavailable_reason(settings.backend, *case)
    if reason:
        return settings.backend, f"It is set on CLEAR Attention, but cannot run here: {reason}."
    return settings.backend, "It is set on CLEAR Attention."


def weights_of(patch: WindowPatch | None) -> WeightsFacts | None:
    """The distilled weights of a model; a large file is read through once, with a bar."""
    if patch is None or patch.file is None:
        return None
    file = patch.file
    report = None
    if file.size > HASH_NOTICE_BYTES:
        bar = comfy.utils.ProgressBar(file.size)

        def report(done: int, total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            bar.update_absolute(done, total)

    return WeightsFacts(file.name, patch.strength, fingerprint(file.path, report))


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


def versions() -> dict[str, str]:
    """Name to version of what takes part."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "installed" if importlib.util.find_spec("triton") else "not installed"
    return {"clear-flux": pack_id()["version"], "ComfyUI": host_version, "torch": torch.__version__, "triton": triton}
