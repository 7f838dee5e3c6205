"""One call of a patched model, or a whole run, along the path that the host's samplers take."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Conditioning = list[tuple[Tensor, dict[str, Any]]]

Graph = dict[str, dict[str, Any]]
"""A workflow in API form: node id to {"class_type", "inputs"}, a link being [node id, output index]."""


def conditioning(context: Tensor, pooled: Tensor, guidance: float = 3.5) -> Conditioning:
    """A host conditioning of one prompt.

    Args:
        context: (1, T, width) text tokens.
        pooled: (1, width) pooled text.
        guidance: The number that FLUX.1-dev takes as an input.
    """
    return [[context, {"pooled_output": pooled, "guidance": guidance}]]


def run_node(node: type, **inputs: Any) -> tuple[Any, ...]:
    """Runs a node the way the host's executor does (old style or V3) and returns its outputs.

    Inputs left out keep their defaults; ``validate_inputs`` is not called (the server does that).
    """
    if hasattr(node, "PREPARE_CLASS_CLONE"):
        node.VALIDATE_CLASS()
        instance = node.PREPARE_CLASS_CLONE(None)
        answer = getattr(instance, node.FUNCTION)(**inputs)
    else:
        answer = getattr(node(), node.FUNCTION)(**inputs)
    if inspect.isawaitable(answer):
        answer = asyncio.run(_awaited(answer))
    return tuple(getattr(answer, "result", answer) or ())


async def _awaited(answer: Any) -> Any:
    return await answer


def run_graph(graph: Graph, stock: Callable[[str], type], wanted: str) -> tuple[Any, ...]:
    """Runs the part of a workflow that one node needs, in this process, and returns that node's outputs.

    Args:
        graph: Workflow in API form.
        stock: Gives the class of a node by its name.
        wanted: Id of the node whose outputs are asked for.
    """
    done: dict[str, tuple[Any, ...]] = {}

    def outputs_of(node: str) -> tuple[Any, ...]:
        if node not in done:
            inputs = {
                name: outputs_of(value[0])[value[1]] if isinstance(value, list) else value
                for name, value in graph[node]["inputs"].items()
            }
            done[node] = run_node(stock(graph[node]["class_type"]), **inputs)
        return done[node]

    with torch.inference_mode():
        return outputs_of(wanted)


def predict(patcher: Any, x: Tensor, sigma: float, positive: Conditioning) -> Tensor:
    """The velocity that the model predicts in one sampler call.

    The model is loaded, patched and called as in any sampling run (weight and object patches, wrappers,
    transformer_options), with one step and cfg 1.

    Args:
        patcher: ModelPatcher, possibly with nodes applied.
        x: (B, C, H, W) noisy latent in the model's own space.
        sigma: Noise level, above 0 to 1.
        positive: Conditioning.

    Returns:
        (B, C, H, W) float32.
    """
    import comfy.samplers

    class OneCall(comfy.samplers.Sampler):
        def sample(
            self,
            model_wrap: Any,
            sigmas: Tensor,
            extra_args: dict[str, Any],
            callback: Any,
            noise: Tensor,
            *_: Any,
            **__: Any,
        ) -> Tensor:
            # Neither scaled nor started from a latent: x goes into the model as it is.
            self.denoised = model_wrap(noise, sigmas[:1].expand(noise.shape[0]), **extra_args)
            return self.denoised

    one_call = OneCall()
    guider = comfy.samplers.CFGGuider(patcher)
    guider.inner_set_conds({"positive": positive})
    with torch.inference_mode():
        guider.sample(x, torch.zeros_like(x), one_call, torch.tensor([sigma, 0.0]), disable_pbar=True, seed=0)
        return (x - one_call.denoised) / sigma


def relative_error(value: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected, in float64."""
    value, expected = value.double(), expected.double()
    assert value.shape == expected.shape, f"shape {tuple(value.shape)}, expected {tuple(expected.shape)}"
    return float((value - expected).norm() / expected.norm())


def prepared(attend: Callable[..., Any]) -> type:
    """What stands in for ``PreparedAttention``: ``attend(q, k, v, **options)`` with the options of both steps."""

    class Prepared:
        def __init__(self, **options: Any) -> None:
            self.options = options

        def __call__(self, *tensors: Any, **options: Any) -> tuple[Any, None]:
            return attend(*tensors, **self.options, **options), None

    return Prepared
