"""``clear_attention``'s arguments: what is refused, in which words, and what the defaults mean."""

import math

import pytest
import torch

from clear_core import ClearSpec, clear_attention


def call(q=None, k=None, v=None, **options):
    q = torch.randn(1, 2, 17, 16) if q is None else q
    k, v = q if k is None else k, q if v is None else v
    return clear_attention(q, k, v, **{"grid": (3, 4), "spec": ClearSpec(2), **options})


@pytest.mark.parametrize(
    "options, message",
    [
        ({"grid": (3, 6)}, "sequence has 17 tokens, but a grid of 3 x 6"),
        ({"grid": (3, 4), "reference_tokens": 6}, "6 reference"),
        ({"grid": (3.0, 4)}, "grid height is 3.0"),
        ({"grid": (0, 4)}, "grid height is 0"),
        ({"grid": None}, "grid is None"),
        ({"reference_tokens": -1}, "reference_tokens is -1"),
        ({"spec": 8}, "spec is 8; expected a ClearSpec"),
        ({"backend": "fast"}, "backend is 'fast'; expected one of auto, dense, gather, triton"),
        (
            {"spec": ClearSpec(2, 2), "spatial_weight": torch.ones(3, 3)},
            r"spatial_weight has shape \(3, 3\); expected \(2, 2\)",
        ),
        ({"spec": ClearSpec(2, 2), "spatial_weight": torch.ones(4)}, r"spatial_weight has shape \(4,\)"),
        ({"chunk_bytes": 0}, "chunk_bytes is 0"),
        ({"chunk_bytes": 1.5}, "chunk_bytes is 1.5"),
        ({"q": torch.randn(2, 17, 16)}, r"q has shape \(2, 17, 16\)"),
        ({"k": torch.randn(1, 2, 18, 16)}, r"k has shape \(1, 2, 18, 16\); expected q's"),
        ({"v": torch.randn(1, 2, 17, 32)}, "v has shape"),
        ({"v": torch.randn(1, 2, 17, 16).half()}, "v is torch.float16"),
        ({"q": torch.ones(1, 2, 17, 16, dtype=torch.int32)}, "q is torch.int32"),
        ({"q": torch.randn(1, 2, 17, 8)}, "head size is 8; expected 16 to 128"),
        ({"q": torch.randn(1, 2, 17, 256)}, "head size is 256; expected 16 to 128"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        call(**options)


def test_the_published_shape_of_the_spatial_weight_is_taken():
    weight = torch.rand(2, 2)
    q = torch.randn(1, 2, 17, 16)
    flat = call(q, spec=ClearSpec(2, 2), spatial_weight=weight)
    published = call(q, spec=ClearSpec(2, 2), spatial_weight=weight.view(1, 1, 1, 2, 1, 2, 1))
    assert torch.equal(flat, published)
    assert not torch.equal(flat, call(q, spec=ClearSpec(2, 2)))


def test_a_scale_of_none_is_one_over_the_root_of_the_head_size():
    q = torch.randn(1, 2, 17, 16)
    assert torch.equal(call(q), call(q, scale=1 / math.sqrt(16)))
    assert not torch.equal(call(q), call(q, scale=0.3))


@pytest.mark.parametrize("backend", ["dense", "gather", "flex"])
def test_a_radius_past_any_integer_type_is_a_window_over_the_grid(backend):
    q, k, v = (torch.randn(1, 2, 40, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    wide, wider = (
        clear_attention(q, k, v, grid=(5, 7), spec=ClearSpec(radius, 2), backend=backend) for radius in (12, 10**12)
    )
    assert torch.equal(wide, wider)


def test_a_radius_that_covers_the_grid_is_ordinary_attention():
    q, k, v = torch.randn(3, 1, 2, 17, 16).unbind()
    ordinary = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    for backend in ("auto", "dense", "gather"):
        torch.testing.assert_close(call(q, k, v, spec=ClearSpec(9), backend=backend), ordinary)
