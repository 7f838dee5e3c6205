"""3. (continued) The Triton kernel's block shapes, each timed by itself on a layer."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from clear_core import ClearSpec
from clear_core.attention.backends.triton.block_shapes import candidate_shapes, shapes_for
from clear_core.attention.backends.triton.launch import BlockShape, KernelTensors, launch
from clear_core.attention.tiling.plan import TilePlan, tile_plan
from clear_core.cost import clear_pairs

from .bench import Bench, Measurement
from .compare import Contender, compare
from .inputs import keys_per_query
from .layers import MAIN_SIZES, PAIR_SECTION
from .scale import Scale


def measurements(scale: Scale) -> list[Measurement]:
    spec = ClearSpec(scale.radii[0])
    return [
        Measurement(f"{size}, block shapes of the Triton kernel", PAIR_SECTION, 10, partial(shapes, size, spec))
        for size in MAIN_SIZES[:1]
    ]


def shapes(size: str, spec: ClearSpec, bench: Bench) -> dict[str, Any]:
    """``written``: the candidates' order in the code; ``chosen``: the order that was measured at first use."""
    scale, layout = bench.scale, bench.scale.layout(size)
    if reason := bench.refusal("triton"):
        return {"written": [], "runs": {}, "skipped": {"triton": reason}, "line": reason}
    nvidia = bench.device.type == "cuda" and torch.version.hip is None
    capability = torch.cuda.get_device_capability(bench.device) if nvidia else None
    written = candidate_shapes(bench.device.type, capability, scale.dtype, scale.head_dim)
    place = torch.empty(0, device=bench.device).device
    keys, pairs = keys_per_query(layout, spec), clear_pairs(layout, spec)
    contenders = [
        Contender(
            str(shape),
            partial(_launched, shape, tile_plan(layout, spec, place, halves=shape.halves)),
            keys,
            pairs,
            spec,
        )
        for shape in written
    ]
    found = compare(contenders, layout, bench)
    chosen = shapes_for(place, scale.dtype, scale.head_dim)
    return {"size": size, "written": [str(one) for one in written], "chosen": [str(one) for one in chosen], **found}


def _launched(shape: BlockShape, plan: TilePlan, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The kernel alone: image queries, no call for the text's."""
    text = slice(0, plan.layout.text)
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    launch(shape, KernelTensors(q, k, v, k[:, :, text], v[:, :, text], out, lse), plan, q.shape[-1] ** -0.5)
    return out
