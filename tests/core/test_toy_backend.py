"""A backend in one file: through choice, self-test, failure and fallback, by one line that registers it."""

import logging

import pytest
import torch

from clear_core import ClearSpec, clear_attention
from clear_core.attention import choose, explain_backend, unavailable_reason
from clear_core.attention.backends.base import KernelError
from clear_core.attention.backends.dense import DENSE

CPU = torch.device("cpu")


class ToyBackend:
    """The oracle under another name, and not for float64."""

    name = "toy"
    title = "The toy"
    instead = "toys"
    takes_bias = False
    compiled = True

    def __init__(self):
        self.calls = []
        self.factor = 1.0
        self.error = None

    def unavailable(self, kind):
        return "the toy does not take torch.float64" if kind.dtype == torch.float64 else None

    def preferred(self, kind):
        return "Toys come first."

    def run(self, call):
        self.calls.append(call)
        if self.error is not None:
            raise KernelError(self.name, self.error)
        result = DENSE.run(call)
        return result._replace(out=result.out * self.factor)


@pytest.fixture
def toy(monkeypatch):
    toy = ToyBackend()
    monkeypatch.setattr(choose, "REGISTRY", [toy, *choose.REGISTRY])  # The one line.
    monkeypatch.setattr(choose, "_logged", set())
    monkeypatch.setattr(choose, "_dropped", {})
    monkeypatch.setattr(choose, "_verdicts", {})
    return toy


def run(backend="auto", dtype=torch.float32, **options):
    q, k, v = torch.randn(3, 1, 2, 5 + 9 * 11, 16, generator=torch.Generator().manual_seed(0), dtype=dtype).unbind()
    return clear_attention(q, k, v, grid=(9, 11), spec=ClearSpec(4), backend=backend, **options)


def explained(dtype=torch.float32, backend="auto"):
    return explain_backend(CPU, dtype, 16, (9, 11), ClearSpec(4), backend)


@pytest.mark.parametrize("backend", ["auto", "toy"])
def test_it_is_tested_once_and_then_runs(backend, toy):
    assert explained() == ("toy", "Toys come first.")
    assert explained(backend="toy") == ("toy", "It was asked for by name.")
    assert unavailable_reason("toy", CPU, torch.float32, 16) is None
    expected = run("dense")
    assert torch.equal(run(backend), expected) and torch.equal(run(backend), expected)
    layouts = [call.layout.grid for call in toy.calls]
    assert layouts == [(20, 13), (20, 13), (9, 11), (9, 11)]
    # The log-sum-exp is another kernel, with a test of its own.
    assert torch.equal(run(backend, return_lse=True)[1], run("dense", return_lse=True)[1])
    assert len(toy.calls) == 7


def test_what_it_does_not_take_is_left_to_others(toy, caplog):
    assert explained(torch.float64)[0] == "gather"
    assert explained(torch.float64)[1] == "The toy is not used because the toy does not take torch.float64."
    for _ in range(2):
        assert torch.equal(run(dtype=torch.float64), run("gather", torch.float64))
    assert len(caplog.records) == 1 and "float64" in caplog.text and not toy.calls
    with pytest.raises(ValueError, match=r"backend is 'toy', but the toy does not take torch.float64; use 'auto'"):
        run("toy", torch.float64)


@pytest.mark.parametrize("backend", ["auto", "toy"])
def test_a_mask_is_handed_over_with_one_line(backend, toy, caplog):
    bias = torch.zeros(1, 1, 104, 5)
    for _ in range(2):
        assert torch.equal(run(backend, bias=bias), run("gather", bias=bias))
    assert [record.message for record in caplog.records] == [
        "CLEAR attention: The toy is not used because it takes no attention mask. The results are the same, from "
        "gathered tiles."
    ]
    assert not toy.calls


def test_a_wrong_kernel_fails_its_self_test(toy, caplog):
    toy.factor = 1.1
    assert explained()[0] == "gather" and "off by" in explained()[1]
    assert "off by" in unavailable_reason("toy", CPU, torch.float32, 16)
    assert torch.equal(run(), run("gather"))
    with pytest.raises(ValueError, match="backend is 'toy', but its kernel is off by"):
        run("toy")
    assert len(toy.calls) == 1 and len(caplog.records) == 1


@pytest.mark.parametrize("backend", ["auto", "toy"])
def test_a_kernel_that_fails_later_is_dropped_and_the_explanation_says_so(backend, toy, caplog):
    run(backend)
    toy.error = OSError("no such\nthing")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert torch.equal(run(backend), run("gather"))
    assert len(toy.calls) == 4  # Two of the self-test, the call that worked, the one that failed.
    reason = "its kernel failed (OSError: no such)"
    assert [record.message for record in caplog.records] == [
        f"CLEAR attention: The toy is not used because {reason}. The results are the same, from gathered tiles."
    ]
    assert explained() == explained(backend="toy") == ("gather", f"The toy is not used because {reason}.")
    assert unavailable_reason("toy", CPU, torch.float32, 16) == reason


def test_a_kernel_that_does_not_run_in_its_self_test(toy):
    toy.error = RuntimeError("broken")
    assert unavailable_reason("toy", CPU, torch.float32, 16) == "its kernel does not run here (RuntimeError: broken)"
    toy.error = None
    assert explained()[0] == "gather", "asked once"
