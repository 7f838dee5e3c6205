"""The self-test of a kernel with gradients: what it finds, and where it may run."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from clear_core import ClearSpec, clear_attention
from clear_core.attention import choose, unavailable_reason
from clear_core.attention.backends.dense import DENSE
from clear_core.attention.self_test import run_self_test
from tests.core.test_toy_backend import ToyBackend

CPU = torch.device("cpu")


class Backward(torch.autograd.Function):
    """The same numbers forward; ``factor`` times the gradient backward, or an error if it is None."""

    @staticmethod
    def forward(ctx, tensor, factor):
        ctx.factor = factor
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        if ctx.factor is None:
            raise RuntimeError("No choices to select")
        return gradient * ctx.factor, None


class GradientBackend(ToyBackend):
    """A toy that is right forward."""

    name = "gradient"
    backward = 1.0

    def run(self, call):
        self.calls.append(call)
        result = DENSE.run(call)
        return result._replace(out=Backward.apply(result.out, self.backward)) if call.needs_grad else result


@pytest.fixture
def toy(monkeypatch):
    toy = GradientBackend()
    monkeypatch.setattr(choose, "REGISTRY", [toy, *choose.REGISTRY])
    for name, empty in {"_logged": set(), "_dropped": {}, "_verdicts": {}}.items():
        monkeypatch.setattr(choose, name, empty)
    return toy


def verdict(needs_grad=True):
    return unavailable_reason("gradient", CPU, torch.float32, 16, needs_grad=needs_grad)


@pytest.mark.parametrize(
    "backward, part", [(1.2, "off by"), (float("nan"), "off by nan"), (None, "does not run here")], ids=str
)
def test_a_wrong_gradient_is_found_and_forward_stays(backward, part, toy):
    toy.backward = backward
    assert part in verdict()
    assert verdict(needs_grad=False) is None


def test_a_right_gradient_passes_in_every_mode_of_the_caller(toy):
    with torch.inference_mode():
        assert verdict() is None
    choose._verdicts.clear()
    with torch.no_grad():
        assert verdict() is None


def test_a_log_sum_exp_of_nothing_is_found():
    class Lost(GradientBackend):
        def run(self, call):
            result = DENSE.run(call)
            return result._replace(lse=result.lse * float("nan"))

    kind = choose.CallKind(CPU, torch.float32, 16, (1, 1), ClearSpec(1), return_lse=True)
    assert "off by nan" in run_self_test(Lost(), kind)


def test_the_first_call_may_be_inside_a_checkpoint(toy):
    """Which counts the tensors that a block saves, forward and when it is run again."""
    tensors = torch.randn(3, 1, 2, 5 + 9 * 11, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def block(tensors):
        q, k, v = tensors.unbind()
        return clear_attention(q, k, v, grid=(9, 11), spec=ClearSpec(4), backend="gradient")

    checkpoint(block, tensors, use_reentrant=False).sum().backward()
    found, tensors.grad = tensors.grad, None
    block(tensors).sum().backward()
    assert torch.equal(found, tensors.grad)
    # Two cases of the self-test, forward, forward again, and without a checkpoint.
    assert len(toy.calls) == 5
