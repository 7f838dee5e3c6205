"""Guidance by a finished picture of low resolution: a post-CFG function and a check before the run.

Source: ``ModelPatcher.set_model_sampler_post_cfg_function`` and ``comfy.patcher_extension.WrappersMP.OUTER_SAMPLE``,
``BaseModel.process_latent_in``; ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....clear_core.guidance import GuideSettings, guided
from ....clear_core.sdedit import check_finite
from ..model.sampling_range import is_in_range
from .run import SharedByClones, model_of, of_batch, picture_words, progress_of

KEY = "clear_guide"


@dataclass(frozen=True, eq=False)
class Guide(SharedByClones):
    """What one guide adds to a clone of the model. It never changes: a run leaves nothing in it.

    Attributes:
        samples: (B, C, h, w) or (B, C, T, h, w) as the host passes latents on.
        settings: As set on the node.
    """

    samples: Tensor
    settings: GuideSettings

    def check(self, executor: Callable[..., Any], noise: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Refuse a run of another size before its models are loaded.

        Raises:
            ValueError: The guide does not fit; the sentence names both sizes.
        """
        model = model_of(executor)
        self.seen_by(model, noise.shape)
        return executor(noise, *args, **kwargs)

    def correct(self, args: dict[str, Any]) -> Tensor:
        """The denoised prediction of a post-CFG call, moved towards the guide."""
        denoised, settings = args["denoised"], self.settings
        if not is_in_range(args["model"].model_sampling, args["sigma"], settings.start_percent, settings.end_percent):
            return denoised
        guide = self.seen_by(args["model"], denoised.shape).to(denoised)
        return guided(denoised, guide, progress_of(args), settings.schedule, settings.level, settings.strength)

    def seen_by(self, model: Any, shape: tuple[int, ...]) -> Tensor:
        """The guide as the model sees latents, with the axes and the batch of a run.

        Args:
            model: The ``comfy.model_base.BaseModel``.
            shape: Of the run's latent.

        Raises:
            ValueError: It is of another size.
        """
        samples = self.samples
        if samples.ndim == 4 and len(shape) == 5:  # Models of video take a picture as one frame, as the host does.
            samples = samples.unsqueeze(2)
        if tuple(samples.shape[1:]) != tuple(shape[1:]):
            raise ValueError(
                f"the guide is {picture_words(samples.shape, model)}, but the picture to sample is "
                f"{picture_words(shape, model)}; enlarge the finished picture to that size (Upscale Image) and "
                "encode it again (VAE Encode)."
            )
        return of_batch(model.process_latent_in(samples), shape[0])


def check_guide(samples: Tensor) -> None:
    """Refuse what cannot be the latent of a finished picture.

    Raises:
        ValueError: It is of several parts, or of another number of axes, or one of its pictures is empty or has NaN.
    """
    if getattr(samples, "is_nested", False):
        raise ValueError("the guide holds several latents (picture and sound); expected the latent of a picture.")
    if samples.ndim not in (4, 5):
        raise ValueError(
            f"the guide has the shape {tuple(samples.shape)}; expected a picture's (batch, channels, height, width): "
            "encode the enlarged picture (VAE Encode)."
        )
    check_finite(samples, "the guide")
    if not samples.flatten(1).any(1).all():
        raise ValueError(
            "the guide is an empty latent; connect the finished low-resolution picture, enlarged and encoded (Upscale "
            "Image, then VAE Encode)."
        )


def apply_guide(model: ModelPatcher, samples: Tensor, settings: GuideSettings) -> ModelPatcher:
    """A clone of ``model`` that is guided; ``model`` itself is not touched.

    Args:
        model: Of any family.
        samples: The guide, at the size that will be sampled, as the host passes latents on.
        settings: With strength 0 nothing is added.
    """
    clone = model.clone()
    if settings.strength:
        guide = Guide(samples, settings)
        clone.set_model_sampler_post_cfg_function(guide.correct)
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, guide.check)
    return clone
