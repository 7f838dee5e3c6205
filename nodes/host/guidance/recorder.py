"""Records the predictions of sampling runs, for the alignment of a later run (HiFlow).

Source: ``ModelPatcher.set_model_sampler_post_cfg_function``, ``comfy.patcher_extension.WrappersMP.OUTER_SAMPLE``;
ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....clear_core.guidance import PredictionRecord, RecordedRun
from ....clear_core.inspection.units import memory_words
from ..node_text import write_on_node
from .run import SharedByClones, model_of, picture_words, sigma_of

KEY = "clear_record"


@dataclass(eq=False)
class Recorder(SharedByClones):
    """What a recorder adds to a clone of the model.

    Attributes:
        record: Where finished runs are kept; a run that was interrupted leaves nothing there.
        node: Id of the node that shows what is kept; None outside a graph.
        running: Predictions of the run that goes on, by sigma; None between runs.
        steps: Sigmas of that run, whose predictions are always kept.
        spare: How many predictions at other sigmas still fit; samplers of higher order ask between the steps.
    """

    record: PredictionRecord
    node: str | None = None
    running: dict[float, Tensor] | None = field(default=None, init=False)
    steps: frozenset[float] = field(default=frozenset(), init=False)
    spare: int = field(default=0, init=False)

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
        """One run: its predictions are kept if it ends well.

        Raises:
            ValueError: They would take more memory than the record may hold.
        """
        model = model_of(executor)
        # One at each step and at the end, and the result.
        one, count = noise.numel() * torch.float32.itemsize, len(sigmas) + 1
        words = f"the predictions of {len(sigmas) - 1} steps at {picture_words(noise.shape, model)}"
        self.record.make_room(count * one, words)
        self.steps, self.spare = frozenset(sigmas.tolist()), self.record.limit // one - count
        self.running = predictions = {}
        try:
            result = executor(noise, latent, sampler, sigmas, *args, **kwargs)
        finally:
            self.running = None
        if float(sigmas[-1]) == 0:
            predictions[0.0] = kept(model.process_latent_in(result))
        if predictions:
            run = RecordedRun(predictions, kept(result))
            # Samplers of higher order ask more often than there are steps; so many still fit, see :attr:`spare`.
            self.record.make_room(run.size, words)
            self.record.runs.append(run)
            write_on_node(self.words, self.node)
        return result

    def write(self, args: dict[str, Any]) -> Tensor:
        """Keep the denoised prediction of a post-CFG call, which stays as it is."""
        denoised, sigma = args["denoised"], sigma_of(args)
        if self.running is None:
            return denoised
        if sigma not in self.running and sigma not in self.steps:
            if self.spare == 0:
                return denoised
            self.spare -= 1
        self.running[sigma] = kept(denoised)
        return denoised

    @property
    def words(self) -> str:
        """What is kept, for the node."""
        runs = self.record.runs
        count = sum(len(run.predictions) for run in runs)
        return (
            f"{len(runs)} run{'s' if len(runs) != 1 else ''} recorded: {count} predictions, "
            f"{memory_words(sum(run.size for run in runs))} of {memory_words(self.record.limit)} of main memory"
        )


def kept(latent: Tensor) -> Tensor:
    """A copy on the CPU."""
    return latent.detach().to("cpu", torch.float32, copy=True)


def apply_recorder(model: ModelPatcher, node: str | None) -> tuple[ModelPatcher, PredictionRecord]:
    """A clone of ``model`` whose runs are recorded, and the record, which is empty until one has ended."""
    clone, recorder = model.clone(), Recorder(PredictionRecord(), node)
    clone.set_model_sampler_post_cfg_function(recorder.write)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, recorder.around)
    return clone, recorder.record
