"""HiFlow's alignment with a recorded run: a post-CFG function whose state lasts for one run.

Source: ``ModelPatcher.set_model_sampler_post_cfg_function``, ``comfy.patcher_extension.WrappersMP.OUTER_SAMPLE``;
ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....clear_core.guidance import Alignment, HiFlowState, RecordedRun, align, brought_to_size
from ..model.sampling_range import is_in_range
from .run import SharedByClones, model_of, of_batch, picture_words, progress_of, sigma_of

KEY = "clear_align"


@dataclass(eq=False)
class Aligner(SharedByClones):
    """What an alignment adds to a clone of the model.

    Attributes:
        run: The recorded run.
        alignment: Strengths and filter.
        start_percent, end_percent: Part of the sampling that is aligned, 0 to 1.
        states: Of the running run, by sigma, falling; empty between runs.
    """

    run: RecordedRun
    alignment: Alignment
    start_percent: float = 0.0
    end_percent: float = 1.0
    states: dict[float, HiFlowState] = field(default_factory=dict[float, HiFlowState], init=False)

    def around(
        self,
        executor: Callable[..., Tensor],
        noise: Tensor,
        latent: Tensor,
        sampler: Any,
        sigmas: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """One run, checked before its models are loaded.

        Raises:
            ValueError: The recorded predictions do not fit, in size or noise levels.
        """
        model = model_of(executor)
        above = [sigma for sigma in sigmas.tolist() if sigma > 0]
        if above:
            self.run.check_sigmas(max(above), min(above))
        self.reference(model, noise.shape, max(above, default=0.0))
        self.states.clear()
        try:
            return executor(noise, latent, sampler, sigmas, *args, **kwargs)
        finally:
            self.states.clear()

    def correct(self, args: dict[str, Any]) -> Tensor:
        """The denoised prediction of a post-CFG call, aligned."""
        denoised, sigma = args["denoised"], sigma_of(args)
        sampling = args["model"].model_sampling
        if sigma == 0 or not is_in_range(sampling, args["sigma"], self.start_percent, self.end_percent):
            return denoised
        reference = self.reference(args["model"], denoised.shape, sigma).to(denoised)
        # The step before is the last one at a higher noise level: samplers of higher order ask at one level twice.
        for earlier in [other for other in self.states if other <= sigma]:
            del self.states[earlier]
        before = self.states[min(self.states)] if self.states else None
        aligned, state = align(
            denoised, reference, args["input"].to(denoised), sigma, progress_of(args), self.alignment, before
        )
        self.states = {min(self.states): before, sigma: state} if before else {sigma: state}
        return aligned

    def reference(self, model: Any, shape: tuple[int, ...], sigma: float) -> Tensor:
        """The recorded prediction at a sigma, with the size and the batch of a run's latent.

        Raises:
            ValueError: It has other axes, channels or proportions.
        """
        found = self.run.at(sigma)
        if found.ndim != len(shape) or tuple(found.shape[1:-2]) != tuple(shape[1:-2]):
            raise ValueError(
                f"the recorded run made {picture_words(found.shape, model)}, but the picture to sample is "
                f"{picture_words(shape, model)}; record a run of a model with the same kind of latent."
            )
        return of_batch(brought_to_size(found, (shape[-2], shape[-1])), shape[0])


def apply_alignment(
    model: ModelPatcher, run: RecordedRun, alignment: Alignment, start_percent: float, end_percent: float
) -> ModelPatcher:
    """A clone of ``model`` that is aligned; with both strengths 0 nothing is added. ``model`` itself is not touched."""
    clone = model.clone()
    if alignment.direction or alignment.acceleration:
        aligner = Aligner(run, alignment, start_percent, end_percent)
        clone.set_model_sampler_post_cfg_function(aligner.correct)
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, aligner.around)
    return clone
