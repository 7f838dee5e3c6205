"""Other libraries' attention in the first run on a card, with stand-ins: none of them is installed here."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from benchmarks.first_gpu.bench import Bench
from benchmarks.first_gpu.compare import compare
from benchmarks.first_gpu.installed import others, published_windows
from benchmarks.first_gpu.scale import SMALL
from clear_core import ClearSpec


@pytest.fixture
def bench():
    return Bench(SMALL, torch.device("cpu"), {}, {}, lambda run: None)


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins with the libraries' arguments and shapes; each keeps what it was called with."""
    calls = []

    def na2d(query, key, value, kernel_size, stride=1, additional_keys=None, additional_values=None):
        assert query.shape == key.shape == value.shape == (1, 9, 10, 2, 16)
        calls.append(("natten", kernel_size, stride, None if additional_keys is None else additional_keys.shape))
        return query

    def kitchen_na2d(q, k, v, kernel_size, is_causal=None, scale=None):
        calls.append(("na2d", q.shape, kernel_size))
        return q

    def sol_attn(q, k, v, tau=1.0, scale=None, sink_blocks=None, sink_q=None, key_bias=None, topk_ratio=0.0):
        calls.append(("sol_attn", q.shape, sink_blocks, sink_q, topk_ratio))
        return q

    def sageattn(q, k, v, tensor_layout="HND", is_causal=False):
        calls.append(("sage", q.shape, tensor_layout))
        return F.scaled_dot_product_attention(q, k, v)

    modules = {
        "natten": {"na2d": na2d},
        "comfy_kitchen": {"na2d": kitchen_na2d, "sol_attn": sol_attn},
        "sageattention": {"sageattn": sageattn},
    }
    for name, members in modules.items():
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**members))
    return calls


def test_installed_libraries_are_called_as_they_want_it(bench, libraries):
    layout, spec = bench.scale.layout("1K"), ClearSpec(4)
    found = compare(others(layout, spec) + published_windows(layout, bench), layout, bench)
    assert not found["skipped"]
    keys = {name: run["keys_per_query"] for name, run in found["runs"].items()}
    # 45 keys lie within a radius of 4.
    assert keys == {
        "natten": 49 + 20,
        "comfy-kitchen na2d": 49,
        "comfy-kitchen sol_attn": 110,
        "sageattention": 110,
        "natten 6 x 6": 36,
        "natten 6 x 6, stride 2": 36,
    }
    assert ("natten", (7, 7), 1, (1, 20, 2, 16)) in libraries and ("natten", (6, 6), 2, None) in libraries
    assert ("na2d", (1, 9, 10, 2, 16), [7, 7]) in libraries
    assert ("sol_attn", (1, 110, 2, 16), [0, 1], [0, 1], 0.5) in libraries
    assert ("sage", (1, 2, 110, 16), "HND") in libraries


def test_libraries_that_are_missing_old_or_broken_are_named(bench, monkeypatch):
    monkeypatch.setitem(sys.modules, "natten", None)
    monkeypatch.setitem(sys.modules, "comfy_kitchen", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "sageattention", types.SimpleNamespace(sageattn=lambda *q, **options: 1 / 0))
    layout = bench.scale.layout("1K")
    found = compare(others(layout, ClearSpec(4)), layout, bench)
    assert not found["runs"] and len(found["skipped"]) == 4
    assert "attribute 'na2d'" in found["skipped"]["comfy-kitchen na2d"]
    assert "ZeroDivisionError" in found["skipped"]["sageattention"]
