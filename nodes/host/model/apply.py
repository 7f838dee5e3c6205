"""Puts CLEAR on a clone of a model and replaces an earlier CLEAR node."""

from __future__ import annotations

from dataclasses import replace

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ....clear_core.attention import check_backend
from ....clear_core.attention.pool import blend_with_mean
from ....clear_core.dense_blocks import parse_dense_blocks
from ....clear_core.family import training_free_words
from ....clear_core.memory import CHUNK_TOKENS
from ....clear_core.number_checks import check_number
from ....clear_core.settings import ClearSettings
from ....clear_core.weights import ClearFile
from .carried_delta import carried_remarks
from .controlnet import ControlPatch
from .family import host_family, model_shape
from .memory import MemoryPatch
from .rope_embedder import install_embedder
from .table_positions import install_table
from .throughput import StopWatch
from .weight_patches import add_weight_patches, remove_weight_patches, trained_changes
from .window_patch import WindowPatch

KEY = "clear_flux"


def apply_clear(
    model: ModelPatcher,
    settings: ClearSettings,
    file: ClearFile | None = None,
    strength: float = 1.0,
    remarks: tuple[str, ...] = (),
) -> ModelPatcher:
    """A clone of ``model`` that attends with CLEAR; ``model`` itself is not touched.

    Args:
        model: Of any family that can have windows; with ``file`` of the one that it was distilled for.
        file: Distilled weights, or None for the window alone.
        strength: Share of the distilled weights, 0 to 1; the rest is the model's own weights.
        remarks: Sentences about the file, for the log and for the texts about the model.

    Raises:
        ValueError: The model cannot have windows, the file does not fit it, ``settings`` names a backend that does not
            exist or blocks that the model lacks, or ``strength`` is out of range.
    """
    shape, host = model_shape(model), host_family(model)
    if file is not None:
        file.fits(shape.width, shape.num_double, shape.num_single, shape.family.name)
    check_number("strength", strength, 0, 1)
    # Bad values are an error here, and not when sampling begins.
    check_backend(settings.backend)
    parse_dense_blocks(settings.dense_blocks, shape.num_double, shape.num_single)
    clone = model.clone()
    for earlier in clone.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        remove_weight_patches(clone, earlier.weight_patches)
    for wrapper_type in (WrappersMP.APPLY_MODEL, WrappersMP.SAMPLER_SAMPLE):
        clone.remove_wrappers_with_key(wrapper_type, KEY)

    patch = WindowPatch(settings, shape, host)
    if file is not None:
        changes = trained_changes(file)
        patch = replace(
            patch,
            spatial_weights={
                block: blend_with_mean(weight, strength) for block, weight in file.spatial_weights().items()
            },
            file=file,
            strength=strength,
            changes=changes,
            remarks=(*remarks, *(carried_remarks(clone, file) if file.adds and strength > 0 else ())),
            weight_patches=add_weight_patches(clone, file, changes, shape, strength),
        )
        for remark in patch.remarks:
            patch.notices.log_once(remark, remark)
    install_embedder(clone)
    install_table(clone)
    if file is None and shape.is_relative:
        words = training_free_words(shape.family.name, settings.spec.overview)
        patch.notices.log_once("relative", f"{words}.")
    if host.has_flux_blocks:
        MemoryPatch(None if shape.is_relative else CHUNK_TOKENS).install(clone)
    StopWatch.of(clone).install(clone)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, patch)
    clone.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, ControlPatch(patch))
    return clone
