"""Other libraries' attention, where it is installed: NATTEN, comfy-kitchen and SageAttention. None is needed.

They compute something else than CLEAR's windows, so each stands in the tables with the keys that its queries see.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Any

from torch import Tensor

from clear_core import ClearSpec, SequenceLayout, cost

from ..timing import error_line
from .bench import Bench
from .compare import Contender
from .contenders import refused
from .inputs import inner_window, keys_per_query

# Tokens that comfy-kitchen's sol_attn takes or leaves as one.
SOL_BLOCK = 64


def others(layout: SequenceLayout, spec: ClearSpec) -> list[Contender]:
    """All of them for windows with about as many keys as ``spec`` has; the missing ones with the reason."""
    side = min(round(inner_window(spec) ** 0.5), *layout.grid)
    return [
        _with("natten", "natten", partial(_natten, layout, side)),
        _with("comfy-kitchen na2d", "comfy_kitchen", partial(_na2d, layout, side)),
        _with("comfy-kitchen sol_attn", "comfy_kitchen", partial(_sol_attn, layout, keys_per_query(layout, spec))),
        _with("sageattention", "sageattention", partial(_sage, layout)),
    ]


def published_windows(layout: SequenceLayout, bench: Bench) -> list[Contender]:
    """The two windows that NATTEN published figures for, by the NATTEN that is installed; image tokens alone."""
    side, stride = min(bench.scale.neighbourhood, *layout.grid), bench.scale.stride
    return [
        _with(f"natten {side} x {side}", "natten", partial(_natten, layout, side, text=False)),
        _with(
            f"natten {side} x {side}, stride {stride}",
            "natten",
            partial(_natten, layout, side, text=False, stride=stride),
        ),
    ]


def _with(name: str, module: str, build: Callable[[str, Any], Contender]) -> Contender:
    """What ``build`` makes of a module, or why it makes nothing."""
    try:
        return build(name, importlib.import_module(module))
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module
        return refused(name, f"{module} is not installed" if missing else error_line(error))
    except Exception as error:
        return refused(name, error_line(error))


def _image(tokens: Tensor, layout: SequenceLayout) -> Tensor:
    """(B, h, w, heads, D), a view."""
    return tokens[:, :, layout.image_slice].transpose(1, 2).unflatten(1, layout.grid)


def _natten(layout: SequenceLayout, side: int, name: str, natten: Any, text: bool = True, stride: int = 1) -> Contender:
    """Square windows, moved inside at the border; the image's queries alone, text among their keys if wanted."""
    na2d = natten.na2d if hasattr(natten, "na2d") else importlib.import_module("natten.functional").na2d

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
        options: dict[str, Any] = {} if stride == 1 else {"stride": stride}
        if text:
            keys, values = (one[:, :, : layout.text].transpose(1, 2) for one in (k, v))
            options |= {"additional_keys": keys, "additional_values": values}
        return na2d(*(_image(one, layout) for one in (q, k, v)), kernel_size=(side, side), **options)

    keys = side * side + (layout.text if text else 0)
    return Contender(name, attend, keys, keys * layout.image)


def _na2d(layout: SequenceLayout, side: int, name: str, kitchen: Any) -> Contender:
    """As NATTEN, without text: it takes no further keys."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return kitchen.na2d(*(_image(one, layout) for one in (q, k, v)), [side, side])

    kitchen.na2d  # noqa: B018 - an older version has none
    return Contender(name, attend, side * side, side * side * layout.image)


def _sol_attn(layout: SequenceLayout, keys: float, name: str, kitchen: Any) -> Contender:
    """Blocks of 64 keys chosen by their scores, about as many as ``keys``; text always, and the rest as one mean each.

    By ratio and not by threshold: how many keys a threshold keeps depends on the picture.
    """
    blocks, text = ceil(layout.length / SOL_BLOCK), ceil(layout.text / SOL_BLOCK)
    chosen = max(1, min(blocks - 1, round((keys - layout.text) / SOL_BLOCK)))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
        tensors = (one.transpose(1, 2) for one in (q, k, v))
        return kitchen.sol_attn(*tensors, sink_blocks=[0, text], sink_q=[0, text], topk_ratio=chosen / blocks)

    kitchen.sol_attn  # noqa: B018 - an older version has none
    # At most: the query's own block and its neighbours are taken too, and may be among the chosen ones.
    most = min(layout.length, (text + chosen + 3) * SOL_BLOCK)
    return Contender(name, attend, most, most * layout.length)


def _sage(layout: SequenceLayout, name: str, sage: Any) -> Contender:
    """Dense attention in 8 bits."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return sage.sageattn(q, k, v, tensor_layout="HND", is_causal=False)

    return Contender(name, attend, layout.length, cost.dense_pairs(layout))
