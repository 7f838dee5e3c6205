"""The static shift of the noise levels, unless a node upstream has set the model's sampling.

Source: ``comfy.model_sampling`` and the object patch ``model_sampling``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import comfy.model_sampling
from comfy.model_patcher import ModelPatcher

from ....clear_core.sdedit import Stage
from ..model.picture_model import picture_model

KEY = "model_sampling"


class StaticShift(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """Flow matching with a fixed shift, as the stock node ModelSamplingAuraFlow sets it."""


def with_shift(model: ModelPatcher, shift: float, stage: Stage) -> tuple[ModelPatcher, str]:
    """A model with a stage's shift, and that shift in text with its origin.

    Args:
        shift: 0 takes it from the recipe of the model's family, which may be the model's own.

    Raises:
        ValueError: A shift is asked for, and the model's noise levels have none.
    """
    if KEY in model.object_patches:
        sampling = model.object_patches[KEY]
        value = getattr(sampling, "shift", None)
        kind = type(sampling).__mro__[1].__name__
        return model, f"{kind} of a node upstream" + (f", shift {value:g}" if value is not None else "")
    picture = picture_model(model)
    family = picture.host.family if picture.host else None
    wanted = shift or (family and family.shift_for(stage.tokens, stage.is_guided_from_noise))
    if not wanted:
        return model, "the model's own"
    clone = model.clone()
    sampling = StaticShift(model.model.model_config)
    sampling.set_parameters(shift=wanted, multiplier=multiplier_of(model, picture.name, wanted))
    clone.add_object_patch(KEY, sampling)
    return clone, f"{wanted:g}"


def multiplier_of(model: ModelPatcher, name: str, wanted: float) -> float:
    """What the model's noise levels are multiplied with to be its timesteps.

    Raises:
        ValueError: They are not those of flow matching.
    """
    own = model.get_model_object(KEY)
    if isinstance(own, comfy.model_sampling.CONST):
        if isinstance(own, comfy.model_sampling.ModelSamplingDiscreteFlow):
            return own.multiplier
        if isinstance(own, comfy.model_sampling.ModelSamplingFlux):
            return 1.0
    raise ValueError(
        f"shift is {wanted:g}, but the noise levels of the model ({name}) have no shift; set shift to 0 for the "
        "model's own."
    )
