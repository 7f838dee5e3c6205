"""What the host tells of a sampling run, for everything that corrects its predictions.

Source: ``comfy.samplers.cfg_function`` (arguments of ``sampler_post_cfg_function``), ``sample_sigmas`` in
``transformer_options``, ``comfy.utils.repeat_to_batch_size``; ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.utils
from torch import Tensor

from ....clear_core.guidance import progress


class SharedByClones:
    """What stays one object in every clone of a model.

    Older hosts copy ``model_options`` at every depth in ``ModelPatcher.clone`` (0.9; 0.33 copies containers alone). A
    method in it would get a copy of its object, and a record would be filled that nobody reads.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedByClones:
        return self


def model_of(executor: Any) -> Any:
    """The ``comfy.model_base.BaseModel`` of the run that an OUTER_SAMPLE wrapper surrounds."""
    return executor.class_obj.model_patcher.model


def sigma_of(args: Mapping[str, Any]) -> float:
    """The noise level of a post-CFG call; the whole batch has one."""
    return float(args["sigma"].flatten()[0])


def progress_of(args: Mapping[str, Any]) -> float:
    """Share of the run that is done at a post-CFG call, 0 to 1.

    Raises:
        ValueError: The sampler does not go through the host's guider, which names the steps.
    """
    sigmas = args["model_options"].get("transformer_options", {}).get("sample_sigmas")
    if sigmas is None:
        raise ValueError(
            "the sampler names no steps (sample_sigmas), so guidance cannot follow its schedule; sample with "
            "KSampler or SamplerCustomAdvanced."
        )
    return progress(sigma_of(args), sigmas.tolist())


def of_batch(latent: Tensor, batch: int) -> Tensor:
    """(batch, ...), repeated or cut as the host does with masks and hints."""
    return comfy.utils.repeat_to_batch_size(latent, batch)


def picture_words(shape: Sequence[int], model: Any) -> str:
    """Size of a latent (B, C, h, w) or (B, C, T, h, w) for people: in pixels as far as the model's format knows them.

    Args:
        model: The ``comfy.model_base.BaseModel``.
    """
    factor = getattr(model.latent_format, "spacial_downscale_ratio", 8)
    height, width = shape[-2:]
    frames = f", {shape[2]} frame{'' if shape[2] == 1 else 's'}" if len(shape) == 5 else ""
    return f"{width * factor} x {height * factor} px ({width} x {height} latent cells, {shape[1]} channels{frames})"
