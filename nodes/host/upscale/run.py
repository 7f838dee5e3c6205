"""One run of CLEARUpscale: stage by stage as nodes of the running graph, or inline outside a graph."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

from torch import Tensor

from ....clear_core.guidance import GuideSettings
from ....clear_core.sdedit import AUTO, OFF, Stage, guided_stages, plan_stages
from ..model.read import has_windows
from ..node_text import write_on_node
from .batches import checked, fitted
from .expansion import Link, expand_stages, links_of
from .forecast import is_known_work, time_text
from .info import EMPTY_MASK, info_text, mask_words
from .progress import RunPlan, StageProgress, plan_of_running_node
from .stage import StageInputs, StageSettings, run_stage, step_work
from .vae_fit import check_encoded, check_vae

REQUIRED_LINKS = {"image", "model", "positive", "vae"}

Values = TypeVar("Values")


@dataclass(frozen=True)
class PlanSettings:
    """The widgets that decide the stages; names, units and ranges are the widgets'."""

    upscale_by: float = 2.0
    seed: int = 0
    denoise: float = 0.5
    stages: int = 0
    stage_denoise: str = "0.7, 0.5"
    guide: str = AUTO
    guide_strength: str = "1.0"

    def plan(self, image: Tensor, sockets: StageInputs) -> tuple[Stage, ...]:
        """The stages for an image (B, H, W, C), each in the units of the model that samples it.

        Raises:
            ValueError: A value is out of range; the sentence names it.
        """
        sizes = asdict(self)
        guide, strength = sizes.pop("guide"), sizes.pop("guide_strength")
        stages = guided_stages(plan_stages(image.shape[1], image.shape[2], **sizes), guide, strength)
        return tuple(replace(stage, units=sockets.of_stage(stage.number).picture.units) for stage in stages)


@dataclass(frozen=True)
class UpscaleResult:
    """The outputs of CLEARUpscale: values, or links into ``graph`` if the stages run as nodes of their own.

    Attributes:
        image: (B, H, W, 3) in 0 to 1, or a link.
        latent: The host's latent dict, or a link.
        info: Everything that decides the result, in text.
        graph: Nodes for the host to run next, or None.
    """

    image: Tensor | Link
    latent: dict[str, Tensor] | Link
    info: str
    graph: dict[str, Any] | None = None


def pick(kind: type[Values], inputs: Mapping[str, Any]) -> Values:
    """A dataclass filled by name from the inputs of a node; inputs that are not connected keep its defaults."""
    names = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType]  # a dataclass, by contract
    return kind(**{name: inputs[name] for name in names if name in inputs})


def run_upscale(image: Tensor, inputs: Mapping[str, Any], node: str | None, dynprompt: Any) -> UpscaleResult:
    """Run CLEARUpscale, or hand its stages to the host as a graph.

    Args:
        image: (B, H, W, C) in 0 to 1.
        inputs: The other inputs of the node by name.
        node: Its id; None outside a graph.
        dynprompt: The running graph as the host gives it to nodes; None outside a graph.

    Raises:
        ValueError: The model makes no pictures, or a picture, a mask, a prompt, a VAE or a widget's value does not fit;
            the sentence names it.
    """
    sockets, settings = pick(StageInputs, inputs), pick(StageSettings, inputs)
    for each in sockets.by_model:
        with naming_later_model(each, sockets):
            each.picture  # noqa: B018  # raises
    image, sockets = checked(image, sockets)
    for each in sockets.by_model:
        with naming_later_model(each, sockets):
            check_vae(each.vae, each.picture)
            for name, prompts in (("positive", each.positive), ("negative", each.negative or [])):
                check_encoded(prompts, name, each.picture)
    plan = pick(PlanSettings, inputs).plan(image, sockets)
    info = info_text(plan, sockets, settings, image.shape[0])
    used = [sockets.of_stage(stage.number) for stage in plan]
    # Where nobody has published distilled windows, a model without them is no mistake.
    if not all(has_windows(each.model) for each in used if each.picture.host and each.picture.host.family.weights):
        logging.warning("CLEAR: attention is dense, since there is no CLEARAttention before CLEARUpscale.")
    if mask_words(sockets.mask) == EMPTY_MASK:
        logging.warning(
            "CLEAR: the mask of CLEARUpscale is %s; Load Image gives such a mask for a picture without transparency.",
            EMPTY_MASK,
        )
    planned = settings.steps * sum(
        step_work(stage, sockets.of_stage(stage.number), settings, image.shape[0]) for stage in plan
    )
    counted = planned if all(is_known_work(each.model) for each in used) else None
    time = time_text(counted, settings.sampler_name) if planned else "time: nothing is sampled"
    write_on_node(f"{info}\n{time}", node)
    run = RunPlan(plan, settings.steps, node)
    links = links_of(dynprompt, node)
    if links.keys() >= REQUIRED_LINKS:
        graph, image_link, latent_link = expand_stages(run, settings, links)
        return UpscaleResult(image_link, latent_link, info, graph)
    return UpscaleResult(*run_inline(image, run, sockets, settings), info)


@contextmanager
def naming_later_model(each: StageInputs, sockets: StageInputs) -> Generator[None]:
    """Say of a refusal that it is about ``later_model``: its sentence speaks of "the model"."""
    try:
        yield
    except ValueError as error:
        if each is sockets:
            raise
        raise ValueError(f"later_model cannot be used: {error}") from None


def run_inline(
    image: Tensor, run: RunPlan, inputs: StageInputs, settings: StageSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """All stages one after the other: the image (B, H, W, 3) and the latent of the last one."""
    latent: dict[str, Tensor] = {}
    for stage in run.stages:
        sockets = inputs.of_stage(stage.number)
        image, latent = run_stage(image, sockets, stage, settings, StageProgress(run, stage))
    return image, latent


def run_single_stage(lists: Mapping[str, list[Any]]) -> tuple[Tensor, dict[str, Tensor]]:
    """One stage as a node of its own: the image (B, H, W, 3) and the latent.

    Args:
        lists: The inputs of the node by name, each with all items of its list. ``item`` says which of them this stage
            takes; shorter lists repeat their last one, as the host has it.
    """
    item = lists["item"][0]
    inputs = {name: values[min(item, len(values) - 1)] for name, values in lists.items()}
    image, sockets = fitted(inputs["image"], pick(StageInputs, inputs))
    source, size = (image.shape[1], image.shape[2]), (inputs["height"], inputs["width"])
    guided = inputs["guide"] != OFF
    guide = GuideSettings(inputs["guide"], inputs["guide_strength"], inputs["guide_level"]) if guided else None
    stage = Stage(inputs["number"], source, size, inputs["denoise"], inputs["seed"], guide, units=sockets.picture.units)
    settings = pick(StageSettings, inputs)
    run = plan_of_running_node() or RunPlan((stage,), settings.steps)
    return run_stage(image, sockets, stage, settings, StageProgress(run, stage))
