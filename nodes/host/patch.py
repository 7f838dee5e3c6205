"""Put CLEAR on a clone of a model, in place of an earlier CLEAR node's."""

from __future__ import annotations

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...clear_core.attention.pool import blend_with_mean
from ...clear_core.settings import ClearSettings
from ...clear_core.weights import ClearFile
from .embedder import install_embedder
from .flux import flux_shape
from .memory import MemoryPatch
from .weights import add_weight_patches, remove_weight_patches, trained_tensors
from .window import WindowPatch

KEY = "clear_flux"


def apply_clear(model: ModelPatcher, settings: ClearSettings, file: ClearFile | None = None,
                strength: float = 1.0) -> ModelPatcher:
    """A clone of ``model`` that attends with CLEAR; ``model`` itself is not touched.

    Args:
        model: A FLUX.1 model.
        file: Distilled weights, or None for the window alone.
        strength: How much of the distilled weights, 0 to 1; the rest is the model's own.

    Raises:
        ValueError: The model is no FLUX.1, or the file does not fit it.
    """
    shape = flux_shape(model)
    clone = model.clone()
    for earlier in clone.get_wrappers(WrappersMP.APPLY_MODEL, KEY):
        remove_weight_patches(clone, earlier.weight_patches)
    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)

    patch = WindowPatch(settings)
    if file is not None:
        patch.weights = f"{file.name} at strength {strength:g}"
        patch.tensors = trained_tensors(file)
        patch.weight_patches = add_weight_patches(clone, file, patch.tensors, shape, strength)
        patch.spatial_weights = {block: blend_with_mean(weight, strength)
                                 for block, weight in file.spatial_weights().items()}
    install_embedder(clone)
    MemoryPatch().install(clone)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, patch)
    return clone
