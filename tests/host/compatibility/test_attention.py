"""Other attention on the same model.

The window computes the blocks and steps it is asked for; what else is installed computes the rest.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.host import support_comfy
from tests.host.support_comfy.boot import Recorder
from tests.host.support_comfy.graph_inputs import noise, prompt
from tests.host.support_comfy.oracle import with_oracle_windows
from tests.host.support_comfy.orders import ORDERS, in_order
from tests.host.support_comfy.sampling import relative_error, run_node

RADIUS, SIGMA = 3, 0.6
DENSE = {("double", 0)}
"""What ``dense_blocks="d0"`` leaves to the other attention."""

HOST_SPARSE = Path(support_comfy.__file__).parent / "comfy_extras" / "nodes_sparse_attention.py"
SPARSE_SIZE = (36, 44)
"""Of a latent with seven blocks of 64 tokens, so that there is something to choose."""


def softer(func: Any, q: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """An attention that can be told from the host's: queries of half the length."""
    return func(q * 0.5, *args, **kwargs)


def proportional(tokens: int) -> float:
    """The scale that ``proportional_attention="on"`` asks for, by number of tokens."""
    return math.sqrt(math.log(tokens, 64 * 64 + 512) / 128)


def check(
    cell: Any, model: Any, clear_node: Any, predict: Any, order: str, other: Any, size: tuple[int, int] = (12, 14)
) -> None:
    """Windows everywhere but in one block, which ``other``'s attention computes, with the scale asked for."""

    def clear(model: Any) -> Any:
        return clear_node(model, radius=RADIUS, dense_blocks="d0", proportional_attention="on")

    x, patched = noise(*size), in_order(order, model, clear, other)
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


@pytest.fixture
def sparse_node(host: Any) -> type:
    """The host's node BlockSparseAttention, imitated (``comfy_extras/nodes_sparse_attention.py`` says how)."""
    if tuple(map(int, host.version.split(".")[:2])) < (0, 33):
        pytest.skip("this ComfyUI has no Block Sparse Attention, nor the hook it needs")
    # Named as the host's loader names a module: by its path, without the ending.
    spec = importlib.util.spec_from_file_location(str(HOST_SPARSE.with_suffix("")), HOST_SPARSE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.BlockSparseAttention


@pytest.mark.row(
    "Block Sparse Attention (ComfyUI 0.36; its hook imitated)",
    "the window is used, the sparse attention where it is switched off; said in one line",
)
@ORDERS
def test_sparse_attention(cell, model, clear_node, predict, order, sparse_node):
    """The node puts itself on top of every other override, anew at each step: also of those set after it."""

    def other(model: Any) -> Any:
        return run_node(sparse_node, model=model, method="sla", keep_percent=10.0, min_tokens=0)[0]

    x = noise(*SPARSE_SIZE)
    chosen, dense = (predict(each, x, SIGMA, prompt()) for each in (other(model), model))
    assert relative_error(chosen, dense) > 1e-3, "the sparse attention computed nothing"
    with Recorder() as log:
        check(cell, model, clear_node, predict, order, other, SPARSE_SIZE)
    cell.one_line(log.messages(), "sparse attention")


def test_the_imitation_is_dense_where_the_published_node_is(host, model, predict, sparse_node):
    """Before its first step, in short sequences, in named blocks and with masks; above, and first asked, otherwise."""
    x, at_once = noise(*SPARSE_SIZE), {"method": "sla", "min_tokens": 0}

    def found(sigma: float, **widgets: Any) -> torch.Tensor:
        return predict(run_node(sparse_node, model=model, **widgets)[0], x, sigma, prompt())

    early, late = (predict(model, x, sigma, prompt()) for sigma in (0.95, SIGMA))
    start = float(model.get_model_object("model_sampling").percent_to_sigma(0.2))
    assert SIGMA < start < 0.95
    assert torch.equal(found(0.95, **at_once), early)
    assert torch.equal(found(SIGMA), late), "18 x 22 tokens are fewer than 12288"
    assert torch.equal(found(SIGMA, **at_once, dense_blocks=(0,)), late), "each kind has one block, of index 0"
    assert not torch.equal(found(SIGMA, **at_once), late)

    patched = run_node(sparse_node, model=model, **at_once)[0]
    options = patched.model_options["transformer_options"]
    override = options["optimized_attention_override"]
    assert override.__module__.endswith("nodes_sparse_attention")
    calls: list[Any] = []

    def attention(q: torch.Tensor, *_: Any, mask: Any = None, **__: Any) -> torch.Tensor:
        calls.append(mask)
        return q

    q = torch.randn(1, 2, 130, 128)
    mask = torch.zeros(1, 130)
    assert override(attention, q, q, q, 2, mask=mask, skip_reshape=True) is q and calls == [mask]
    assert override(attention, q, q[:, :, :65], q[:, :, :65], 2, skip_reshape=True) is q and calls == [mask, None]
    # A node that comes later puts its override there; the next step has the sparse attention on top of it, once.
    options["optimized_attention_override"] = softer
    for _ in range(2):
        patched.prepare_state(torch.tensor([SIGMA]), patched.model_options)
    again = options["optimized_attention_override"]
    assert again is not softer and again.__module__ == override.__module__
    assert torch.equal(again(attention, q, q, q, 2, mask=mask, skip_reshape=True), q * 0.5)
