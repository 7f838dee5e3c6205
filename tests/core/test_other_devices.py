"""What is known of devices that are not at hand: each fault of theirs is imitated on the CPU."""

import importlib.util
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.attention import call as call_module
from clear_core.attention import choose, device_fault, outside_image
from clear_core.attention.backends import dense, gather
from clear_core.attention.backends.base import KernelError
from clear_core.attention.backends.flex import backend as flex
from clear_core.attention.bias import additive
from clear_core.attention.fused import SCORE_BYTES, is_fused

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps")
BUDGET = 4 * 2**20


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    for name, empty in {"_logged": set(), "_dropped": {}, "_verdicts": {}}.items():
        monkeypatch.setattr(choose, name, empty)


def tensors(layout, heads=4, head_dim=32, dtype=torch.float32):
    """V is a view with the model's row stride."""
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(3, 1, layout.length, heads, 2 * head_dim, generator=generator).to(dtype)
    return [one[..., head_dim:].transpose(1, 2) for one in wide]


# ---- attention that keeps its scores ----


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("spec", [ClearSpec(3), ClearSpec(9), ClearSpec(5, 2)], ids=str)
@pytest.mark.parametrize("grid", [(40, 36), (23, 61)], ids=str)
@pytest.mark.parametrize("backend", ["gather", "dense"])
def test_scores_stay_within_the_memory_limit(backend, grid, spec, masked, monkeypatch):
    layout = SequenceLayout(50, grid, 7)
    q, k, v = tensors(layout)
    options = {"grid": grid, "spec": spec, "reference_tokens": layout.reference, "backend": backend}
    if masked:
        options["bias"] = torch.randn(1, 4, layout.length, layout.text, generator=torch.Generator().manual_seed(1))
    expected = clear_attention(q, k, v, **options)
    most = []

    def counted(q, k, v, **more):
        most.append(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] * SCORE_BYTES)
        return attention(q, k, v, **more)

    attention = F.scaled_dot_product_attention
    monkeypatch.setattr(call_module, "is_fused", lambda *kind: False)
    monkeypatch.setattr(outside_image, "queries_at_once", elsewhere)
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    monkeypatch.setattr("clear_core.attention.lse.lse_is_free", lambda *call: False)
    found = clear_attention(q, k, v, chunk_bytes=BUDGET, **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-6)
    # A tile of a single head is never split; it takes less here.
    assert len(most) > 4 and max(most) <= BUDGET


def elsewhere(device, pairs, chunk_bytes, fused):
    """The rule for devices that are no CPU."""
    from clear_core.attention.budget import queries_at_once

    return queries_at_once(MPS, pairs, chunk_bytes, fused)


def test_whether_attention_is_fused_is_asked_of_torch(monkeypatch):
    asked = []

    def answer(value):
        return lambda parameters, debug: asked.append(value) or value

    monkeypatch.setattr(torch, "empty", lambda *shape, **options: torch.zeros(shape))
    monkeypatch.setattr(torch.backends.cuda, "SDPAParams", lambda *arguments: arguments)
    for name in ("can_use_flash_attention", "can_use_efficient_attention", "can_use_cudnn_attention"):
        monkeypatch.setattr(torch.backends.cuda, name, answer(False), raising=False)
    is_fused.cache_clear()
    assert not is_fused(CUDA, torch.bfloat16, 128, False) and len(asked) == 3
    monkeypatch.setattr(torch.backends.cuda, "can_use_efficient_attention", answer(True))
    assert is_fused(CUDA, torch.bfloat16, 128, True)
    assert not is_fused(CUDA, torch.bfloat16, 128, False), "a device is asked once"
    assert not is_fused(MPS, torch.bfloat16, 128, False) and is_fused(CPU, torch.bfloat16, 128, False)
    is_fused.cache_clear()


# ---- attention that reads views wrongly ----


def mistreats_views(q, k, v, **options):
    """As Apple's attention in torch 2.8."""
    attention = torch.ops.aten._scaled_dot_product_attention_math
    mask, scale = options.get("attn_mask"), options["scale"]
    # Unlike the public function this one adds booleans as numbers.
    mask = mask if mask is None else additive(mask, q.dtype)
    return attention(q, k, v if v.is_contiguous() else v.flip(-1), mask, scale=scale)[0]


def test_text_and_dense_rows_get_contiguous_tensors(monkeypatch):
    layout = SequenceLayout(12, (9, 14), 3)
    q, k, v = tensors(layout)
    options = {"grid": layout.grid, "spec": ClearSpec(4), "reference_tokens": 3}
    expected = clear_attention(q, k, v, backend="dense", **options)
    monkeypatch.setattr(F, "scaled_dot_product_attention", mistreats_views)
    wrong = clear_attention(q, k, v, backend="gather", **options)
    assert (wrong[:, :, :12] - expected[:, :, :12]).abs().max() > 0.1
    for module in (outside_image, dense, gather):
        monkeypatch.setattr(module, "plain", torch.Tensor.contiguous)
    for backend in ("gather", "dense"):
        torch.testing.assert_close(clear_attention(q, k, v, backend=backend, **options), expected)


def test_a_device_that_is_wrong_all_the_same_is_refused(monkeypatch):
    """The self-test has a strided V; nothing on this device is right, so nothing is computed there."""
    monkeypatch.setattr(choose, "_is_unproven", lambda device: True)
    assert device_fault(CPU, torch.float32, 32) is None
    choose._verdicts.clear()
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *tensors, **options: tensors[0] * 0.5)
    expected = choose.DENSE.run
    monkeypatch.setattr(choose.DENSE, "run", lambda call: expected(call)._replace(out=call.v * 0.0))
    assert "off by" in device_fault(CPU, torch.float32, 32)
    layout = SequenceLayout(3, (20, 20))
    with pytest.raises(ValueError, match="windows cannot be computed on cpu: its kernel is off by"):
        clear_attention(*tensors(layout), grid=layout.grid, spec=ClearSpec(3))


# ---- cards that the compiled kernel is not for ----


@pytest.mark.parametrize(
    "dtype, capability, part",
    [
        (torch.float16, (7, 5), "needs compute capability 8.0 and above, and cuda:0 has 7.5"),
        (torch.float32, (8, 6), "float32 needs more shared memory"),
        (torch.bfloat16, (8, 6), None),
        (torch.float16, (12, 0), None),
    ],
)
def test_flex_is_not_compiled_where_it_cannot_run(dtype, capability, part, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(choose, "run_self_test", lambda *case: None)
    reason = choose.unavailable_reason("flex", CUDA, dtype, 128)
    assert reason is None if part is None else part in reason


def test_guards_need_no_compiler(monkeypatch):
    """torch 2.8 and 2.9 compile them with a C++ compiler, which Windows lacks."""
    seen = []

    def compiled(q, *arguments):
        seen.append(torch._dynamo.config.enable_cpp_symbolic_shape_guards)
        return q.clone()

    monkeypatch.setattr(flex, "_compiled", lambda threads: compiled)
    monkeypatch.setattr(choose, "_self_test", lambda *case: None)
    layout = SequenceLayout(3, (20, 20))
    for before in (True, False):
        # Not by monkeypatch: it would delete the setting afterwards, because torch keeps it outside the module's dict.
        with torch._dynamo.config.patch(enable_cpp_symbolic_shape_guards=before):
            clear_attention(*tensors(layout), grid=layout.grid, spec=ClearSpec(3), backend="flex")
            assert torch._dynamo.config.enable_cpp_symbolic_shape_guards is before
    assert seen == [False, False]


# ---- a card that is full for a moment ----


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), KernelError("flex", RuntimeError("CUDA error: out of memory"))],
    ids=["allocation", "loading the kernel"],
)
def test_a_self_test_without_memory_is_no_verdict(error, monkeypatch):
    answers = [error, None]

    def test(*case):
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    monkeypatch.setattr(choose, "run_self_test", test)
    assert "out of memory" in choose.unavailable_reason("flex", CPU, torch.float32, 32)
    assert choose.unavailable_reason("flex", CPU, torch.float32, 32) is None
    assert choose.unavailable_reason("flex", CPU, torch.float32, 32) is None and not answers


def test_a_kernel_without_memory_is_not_dropped(monkeypatch, caplog):
    def compiled(*arguments):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(flex, "_compiled", lambda threads: compiled)
    monkeypatch.setattr(choose, "_self_test", lambda *case: None)
    layout = SequenceLayout(3, (20, 20))
    options = {"grid": layout.grid, "spec": ClearSpec(3)}
    found = clear_attention(*tensors(layout), backend="flex", **options)
    assert torch.equal(found, clear_attention(*tensors(layout), backend="gather", **options))
    assert not choose._dropped and "out of memory" in caplog.text


@pytest.mark.parametrize("fits", [1, 3])
def test_gathered_tiles_take_smaller_chunks_if_memory_is_short(fits, monkeypatch):
    layout = SequenceLayout(5, (80, 80))
    q, k, v = tensors(layout)
    options = {"grid": layout.grid, "spec": ClearSpec(3), "backend": "gather", "chunk_bytes": 2**30}
    expected = clear_attention(q, k, v, **options)
    attention, refused = F.scaled_dot_product_attention, []

    def short_of_memory(q, k, v, **more):
        if k.shape[2] < layout.length and len(q) > fits:
            refused.append(len(q))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return attention(q, k, v, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", short_of_memory)
    torch.testing.assert_close(clear_attention(q, k, v, **options), expected)
    assert refused
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **b: short_of_memory(q.repeat(99, 1, 1, 1), k[:, :, :9], v)
    )
    with pytest.raises(torch.OutOfMemoryError):
        clear_attention(q, k, v, **options)


# ---- what flex holds ----


class LiveBytes(TorchDispatchMode):
    """The largest sum of the storages that were made and are still alive, without those given."""

    def __init__(self, *given):
        super().__init__()
        self.given = {one.untyped_storage().data_ptr() for one in given}
        self.alive, self.most = {}, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() not in self.given:
                storage = one.untyped_storage()
                key = storage._cdata
                if key not in self.alive:
                    self.alive[key] = storage.nbytes()
                    weakref.finalize(storage, self.alive.pop, key, None)
        self.most = max(self.most, sum(self.alive.values()))
        return out


@pytest.mark.parametrize("grid", [(64, 64), (68, 120), (90, 160), (52, 76)], ids=str)
def test_flex_holds_no_more_than_is_planned(grid, monkeypatch):
    """Four hidden states beside q, k, v and the result."""
    monkeypatch.setattr(flex, "_compiled", lambda threads: lambda q, *rest: torch.empty_like(q))
    monkeypatch.setattr(choose, "_self_test", lambda *case: None)
    layout = SequenceLayout(64, grid)
    q, k, v = tensors(layout, heads=2, head_dim=64)
    clear_attention(q, k, v, grid=grid, spec=ClearSpec(4), backend="flex")
    with torch.no_grad(), LiveBytes(q, k, v) as live:
        clear_attention(q, k, v, grid=grid, spec=ClearSpec(4), backend="flex")
    assert 3 < live.most / q.nbytes <= 5
