"""What a mask is classified as, which backend takes it, and which masks are refused."""

import logging

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.attention import AttentionBias, ImageBias, choose
from clear_core.attention.bias import COMPARED_ELEMENTS
from tests.support.bias_cases import Case


@pytest.mark.parametrize(
    "kind, image",
    [("text", ImageBias.NONE), ("free", ImageBias.NONE), ("level", ImageBias.PER_QUERY), ("pairs", ImageBias.PER_PAIR)],
)
@pytest.mark.parametrize("one_row", [False, True], ids=["rows", "one_row"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
def test_what_a_mask_does_between_image_tokens(kind, image, one_row, dtype):
    case = Case(3, kind, dtype, SequenceLayout(7, (5, 9), 4), ClearSpec(2), 2, 3, (2, 3), one_row, None)
    assert AttentionBias.of(case.bias(), case.layout).image is image


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_one_element_in_a_large_mask_is_found(last, monkeypatch):
    monkeypatch.setattr("clear_core.attention.bias.COMPARED_ELEMENTS", 1000)
    layout = SequenceLayout(3, (20, 20))
    bias = torch.zeros(1, 1, 403, 403)
    assert AttentionBias.of(bias, layout).image is ImageBias.NONE
    bias[..., 402 if last else 3, 402 if last else 3] = 1.0
    assert AttentionBias.of(bias, layout).image is ImageBias.PER_PAIR
    bias[..., 402 if last else 3, 3:] = 1.0
    assert AttentionBias.of(bias, layout).image is ImageBias.PER_QUERY


def test_classifying_a_mask_makes_nothing_as_large():
    layout = SequenceLayout(0, (96, 96))
    bias = torch.ones(1, 1, 96 * 96, 96 * 96, dtype=torch.bool)
    assert bias.numel() > COMPARED_ELEMENTS
    largest = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() != bias.untyped_storage().data_ptr():
                largest.append(out.untyped_storage().nbytes())
            return out

    with Watch():
        assert AttentionBias.of(bias, layout).image is ImageBias.NONE
    assert 0 < max(largest) <= COMPARED_ELEMENTS


@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_a_mask_that_was_classified_serves_any_number_of_calls(kind):
    case = Case(5, kind, torch.float32, SequenceLayout(7, (19, 21), 2), ClearSpec(3), 2, 2, (2, 1), False, None)
    bias = AttentionBias.of(case.bias(), case.layout)
    q, k, v = case.inputs()
    for spec in (ClearSpec(3), ClearSpec(6)):
        options = {"grid": case.layout.grid, "spec": spec, "reference_tokens": 2}
        assert torch.equal(
            clear_attention(q, k, v, bias=bias, **options), clear_attention(q, k, v, bias=case.bias(), **options)
        )
    with pytest.raises(ValueError, match=r"made for .*grid=.19, 21.*expected .*grid=.21, 19"):
        clear_attention(q, k, v, bias=bias, grid=(21, 19), spec=ClearSpec(3), reference_tokens=2)


@pytest.mark.parametrize("backend, said", [("flex", 1), ("triton", 1), ("gather", 0), ("auto", 0)])
def test_a_kernel_that_takes_no_mask_leaves_it_to_gather_and_says_so_once(backend, said, monkeypatch, caplog):
    monkeypatch.setattr(choose, "_logged", set())
    case = Case(4, "text", torch.float32, SequenceLayout(7, (20, 21)), ClearSpec(4), 1, 2, (1, 1), False, None)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(case.run(backend), case.run("gather"))
    lines = [record.message for record in caplog.records]
    assert len(lines) == said
    assert all("mask" in line and "gathered tiles" in line for line in lines)


@pytest.mark.parametrize(
    "bias, named",
    [
        ([0.0], r"bias is \[0.0\]; expected a tensor"),
        (torch.zeros(1, 1, 12, 12, dtype=torch.int64), "bias is torch.int64; expected bool"),
        (torch.zeros(12, 12), r"bias has shape \(12, 12\); expected \(batch or 1, heads or 1, 12 or 1, 3"),
        (torch.zeros(1, 1, 12, 4), r"bias has shape \(1, 1, 12, 4\)"),
        (torch.zeros(1, 1, 2, 12), r"bias has shape \(1, 1, 2, 12\)"),
        (torch.zeros(3, 1, 12, 12), "bias has a batch dimension of 3; expected 1 or q's, 2"),
        (torch.zeros(2, 3, 12, 12), "bias has a heads dimension of 3; expected 1 or q's, 4"),
        (torch.zeros(1, 1, 12, 12, device="meta")[..., :3], "bias is on meta; expected q's device, cpu"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(getattr(value, "shape", value)),
)
def test_a_mask_that_does_not_fit_is_named(bias, named):
    q = torch.zeros(2, 4, 12, 16)
    with pytest.raises(ValueError, match=named):
        clear_attention(q, q, q, grid=(3, 3), spec=ClearSpec(2), bias=bias)


@pytest.mark.parametrize("backend", ["auto", "dense", "gather", "flex"])
def test_pooled_keys_refuse_a_mask_that_tells_image_tokens_apart(backend):
    case = Case(4, "pairs", torch.bool, SequenceLayout(7, (8, 9)), ClearSpec(4, 3), 1, 2, (1, 1), False, None)
    with pytest.raises(ValueError, match="pool 3 x 3 of them; use down_factor 1"):
        case.run(backend)
