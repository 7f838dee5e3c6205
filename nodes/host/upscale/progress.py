"""One progress bar over all stages, steps and tiles, with a line of text on the node.

Source: ``comfy.utils.set_progress_bar_global_hook`` and ``comfy_execution.utils.get_executing_context``, in ComfyUI
0.9.0 and later.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import comfy.model_management
import comfy.utils
import torch.nn.functional as F
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ....clear_core.inspection.units import time_words
from ....clear_core.sdedit import Stage
from ..node_text import write_on_node

StepCallback = Callable[[int, Tensor, Tensor, int], None]
"""A sampler's callback: (step, denoised latent, noisy latent, steps)."""

SecondsLeft = Callable[[Tensor, int, int], float | None]

# Weight of a phase, in denoising steps of the same frame.
PHASE_STEPS = {"enlarge": 1, "encode": 1, "decode": 1}

PREVIEW_LATENTS = 128
"""Longest side of a latent that is decoded as a preview; larger ones are reduced first."""


@dataclass(frozen=True)
class RunPlan:
    """All stages of one run, which decide the share of each in the bar.

    Attributes:
        stages: In order.
        steps: Denoising steps of each.
        node: Id of the node in the user's graph; None outside a graph.
    """

    stages: tuple[Stage, ...]
    steps: int
    node: str | None = None

    def units(self, stage: Stage) -> int:
        """Weight of a stage: a denoising step of one token is one."""
        return stage.tokens * (self.steps + sum(PHASE_STEPS.values()))

    @property
    def total(self) -> int:
        return sum(self.units(stage) for stage in self.stages)


# Stages run as nodes of their own, and the host's cache compares all their inputs; so the plan of the whole run is kept
# beside the graph. It changes the bar and the text only.
_plans: OrderedDict[str, RunPlan] = OrderedDict()
_PLANS_KEPT = 64


def announce_plan(prefix: str, plan: RunPlan) -> None:
    """Remember the plan of the stage nodes whose ids start with ``prefix``."""
    _plans[prefix] = plan
    while len(_plans) > _PLANS_KEPT:
        _plans.popitem(last=False)


def plan_of_running_node() -> RunPlan | None:
    """The plan of the run that the executing node belongs to, or None."""
    context = get_executing_context()
    return _plans.get(context.node_id.rpartition(".")[0] + ".") if context else None


def reduced(latent: Tensor, factor: float) -> Tensor:
    """A latent (B, C, h, w) or (B, C, T, h, w) with sides shorter by ``factor``; T stays."""
    plane = latent.float().flatten(1, -3)
    small = F.interpolate(plane, scale_factor=factor, mode="area")
    return small.unflatten(1, latent.shape[1:-2]).to(latent.dtype)


@dataclass
class StageProgress:
    """The progress of one stage.

    Attributes:
        plan: The whole run.
        stage: Which of its stages.
    """

    plan: RunPlan
    stage: Stage
    done: float = field(init=False)
    phase_units: float = field(init=False, default=0.0)
    steps_done: int = field(init=False, default=0)
    hook: Callable[..., Any] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        earlier = [stage for stage in self.plan.stages if stage.number < self.stage.number]
        self.done = sum(self.plan.units(stage) for stage in earlier)

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Map the host's own bars inside to this phase's share of ours."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.phase_units = self.stage.tokens * PHASE_STEPS.get(name, self.plan.steps)
        self.hook, self.steps_done = comfy.utils.PROGRESS_BAR_HOOK, 0
        comfy.utils.set_progress_bar_global_hook(self.forward)
        try:
            yield
        finally:
            comfy.utils.set_progress_bar_global_hook(self.hook)
        self.done += self.phase_units
        self.show(0.0)

    def leave_out(self, *names: str) -> None:
        """Move the bar over phases that have nothing to do."""
        for name in names:
            with self.phase(name):
                pass

    def forward(self, value: float, total: float, preview: Any = None, *args: Any, **kwargs: Any) -> None:
        """Called by a bar of the host with its own value and total."""
        self.show(value / max(total, 1), preview)

    def show(self, share: float, preview: Any = None) -> None:
        """Move the bar to ``share`` (0 to 1) of the phase, with an interrupt check before."""
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self.hook is not None:
            self.hook(int(self.done + min(share, 1.0) * self.phase_units), self.plan.total, preview)

    def on_tile(self, done: int, tiles: int) -> None:
        """After a tile of the running step; after its last one, the step itself moves the bar."""
        if done < tiles:
            self.show((self.steps_done + done / tiles) / self.plan.steps)

    def on_step(self, callback: StepCallback, seconds_left: SecondsLeft) -> StepCallback:
        """A sampler's callback that previews a reduced latent and writes the time left on the node.

        Args:
            callback: The host's own.
            seconds_left: Of this stage, from (denoised latent, steps done, steps); None if not known.
        """

        def after_step(step: int, x0: Tensor, x: Tensor, total: int) -> None:
            self.steps_done = step + 1
            left = seconds_left(x0, step + 1, total)
            longest = max(x0.shape[-2:])
            if longest > PREVIEW_LATENTS:
                x0 = reduced(x0, PREVIEW_LATENTS / longest)
            callback(step, x0, x, total)
            height, width = self.stage.size
            text = (
                f"Stage {self.stage.number} of {len(self.plan.stages)}: {width} x {height} px, step {step + 1} "
                f"of {total}"
            )
            if left is not None:
                text += f", {time_words(left)} left in this stage"
            write_on_node(text, self.plan.node)

        return after_step
