"""Other attention on the same model.

The window computes the blocks and steps it is asked for; what else is installed computes the rest.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.graph_inputs import noise, prompt
from tests.host.support_comfy.oracle import with_oracle_windows
from tests.host.support_comfy.orders import ORDERS, in_order
from tests.host.support_comfy.sampling import run_node

RADIUS, SIGMA = 3, 0.6
DENSE = {("double", 0)}
"""What ``dense_blocks="d0"`` leaves to the other attention."""

HOST_SPARSE = "comfy_extras/nodes_sparse_attention"


def softer(func: Any, q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """An attention that can be told from the host's: queries of half the length."""
    return func(q * 0.5, *args, **kwargs)


def proportional(tokens: int) -> float:
    """The scale that ``proportional_attention="on"`` asks for, by number of tokens."""
    return math.sqrt(math.log(tokens, 64 * 64 + 512) / 128)


def check(cell: Any, model: Any, clear_node: Any, predict: Any, order: str, other: Any) -> None:
    """Windows everywhere but in one block, which ``other``'s attention computes, with the scale asked for."""

    def clear(model: Any) -> Any:
        return clear_node(model, radius=RADIUS, dense_blocks="d0", proportional_attention="on")

    x, patched = noise(12, 14), in_order(order, model, clear, other)
    cell.oracle(
        predict(patched, x, SIGMA, prompt()),
        predict(with_oracle_windows(other(model), RADIUS, proportional, DENSE), x, SIGMA, prompt()),
        predict(other(model), x, SIGMA, prompt()),
    )


@pytest.mark.row(
    "Attention overrides (Sage and Flash style)", "run where the window is switched off, with the scale asked for"
)
@ORDERS
def test_override(cell, model, clear_node, predict, order):
    def other(model: Any) -> Any:
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = softer
        return model

    check(cell, model, clear_node, predict, order, other)


@pytest.mark.row("ModelAttentionBackend", "runs where the window is switched off, with the scale asked for")
@ORDERS
def test_backend_node(cell, model, clear_node, predict, stock, order):
    node = stock("ModelAttentionBackend", "nodes_model_advanced")
    check(
        cell,
        model,
        clear_node,
        predict,
        order,
        lambda model: run_node(node, model=model, attention="pytorch attention")[0],
    )


@pytest.fixture
def kernel_calls(use_pack: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """KJNodes with stand-ins for the libraries of its two kernels; one entry for each call of a kernel."""
    calls: list[str] = []

    def sage(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: Any = None, **_: Any) -> torch.Tensor:
        """As the library's with the layout HND: (B, heads, L, D), half precision."""
        calls.append("sage")
        return F.scaled_dot_product_attention(q.float() * 0.5, k.float(), v.float()).to(q.dtype)

    def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **_: Any) -> torch.Tensor:
        """As the library's: (B, L, heads, D)."""
        return sage(*(tensor.transpose(1, 2) for tensor in (q, k, v))).transpose(1, 2)

    use_pack("ComfyUI-KJNodes")
    monkeypatch.setitem(sys.modules, "sageattention", SimpleNamespace(sageattn=sage))
    monkeypatch.setitem(sys.modules, "flash_attn", SimpleNamespace(flash_attn_func=flash))
    return calls


@pytest.mark.row(
    "KJNodes: Patch Sage Attention, Patch Flash Attention",
    "run where the window is switched off, with the scale asked for",
)
@ORDERS
@pytest.mark.parametrize("kind", ["sage", "flash"])
def test_kjnodes(cell, host, model, clear_node, predict, kernel_calls, order, kind):
    node, widgets = (
        ("PathchSageAttentionKJ", {"sage_attention": "auto"}) if kind == "sage" else ("PatchFlashAttentionKJ", {})
    )
    check(cell, model, clear_node, predict, order, lambda model: run_node(host.stock(node), model=model, **widgets)[0])
    # One block of ours and of the oracle's, both blocks of the model without windows.
    assert len(kernel_calls) == 4


@pytest.mark.row(
    "Block Sparse Attention (ComfyUI 0.36; its hook imitated)",
    "the window is used, the sparse attention where it is switched off; said in one line",
)
@ORDERS
def test_sparse_attention(cell, host, model, clear_node, predict, order):
    """The node puts itself on top of every other override, anew at each step: also of those set after it."""
    from comfy.patcher_extension import CallbacksMP

    if tuple(map(int, host.version.split(".")[:2])) < (0, 33):
        pytest.skip("this ComfyUI has no Block Sparse Attention, nor the hook it needs")

    def install(options: dict[str, Any]) -> None:
        previous = options.get("optimized_attention_override")
        if getattr(previous, "__module__", "") != HOST_SPARSE:

            def sparse(func: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
                return softer(func if previous is None else previous, *args, **kwargs)

            sparse.__module__ = HOST_SPARSE
            options["optimized_attention_override"] = sparse

    def other(model: Any) -> Any:
        model = model.clone()
        install(model.model_options["transformer_options"])
        model.add_callback_with_key(
            CallbacksMP.ON_PREPARE_STATE,
            "block_sparse_attention",
            lambda _, __, options: install(options["transformer_options"]),
        )
        return model

    with Recorder() as log:
        check(cell, model, clear_node, predict, order, other)
    cell.one_line(log.messages(), "sparse attention")
