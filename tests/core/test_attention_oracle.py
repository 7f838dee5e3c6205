"""The oracle itself: ``dense`` against a softmax written out in loops, pooling against the published formula."""

import itertools
import math

import pytest
import torch

from clear_core import ClearSpec, clear_attention
from clear_core.attention.merge import merge
from clear_core.attention.pool import border_gain, mean_weight, pool_tokens


def naive_attention(q, k, v, grid, spec, weight, text, scale):
    """One head in float64, one query and one key at a time, from the paper's text alone.

    Args:
        q, k, v: (L, D) float64.
    """
    height, width = grid
    d = spec.down_factor
    places = {text + y * width + x: (y, x) for y in range(height) for x in range(width)}
    pooled = []
    if d > 1:
        for top, left in itertools.product(range(0, height, d), range(0, width, d)):
            cell = [(i, j) for i in range(d) for j in range(d) if top + i < height and left + j < width]
            share = weight.sum() / sum(weight[i, j] for i, j in cell)
            tokens = [(text + (top + i) * width + left + j, weight[i, j] * share) for i, j in cell]
            pooled.append(tuple(sum(w * one[t] for t, w in tokens) for one in (k, v)))
    out = torch.zeros_like(q)
    for query in range(len(q)):
        keys = []
        for key in range(len(k)):
            if query in places and key in places:
                (y, x), (other_y, other_x) = places[query], places[key]
                if (y - other_y) ** 2 + (x - other_x) ** 2 >= spec.radius**2:
                    continue
            keys.append((k[key], v[key]))
        if query in places:
            keys += pooled
        scores = [float(q[query] @ key) * scale for key, _ in keys]
        top_score = max(scores)
        weights = [math.exp(score - top_score) for score in scores]
        for share, (_, value) in zip(weights, keys, strict=True):
            out[query] += share / sum(weights) * value
    return out


@pytest.mark.parametrize(
    "grid, text, reference, spec",
    [
        ((1, 1), 0, 0, ClearSpec(1)),
        ((3, 5), 2, 0, ClearSpec(2)),
        ((5, 4), 0, 3, ClearSpec(3)),
        ((4, 4), 1, 1, ClearSpec(1, 2)),
        ((5, 7), 3, 2, ClearSpec(2, 2)),
        ((5, 7), 0, 0, ClearSpec(3, 4)),
        ((2, 3), 1, 0, ClearSpec(9, 5)),
        ((6, 7), 1, 0, ClearSpec(4)),  # up to radius 3, circle and square hold the same tokens
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["dense", "gather"])
def test_against_loops(grid, text, reference, spec, backend):
    generator = torch.Generator().manual_seed(0)
    length = text + grid[0] * grid[1] + reference
    q, k, v = (torch.randn(1, 1, length, 16, generator=generator) for _ in range(3))
    weight = (torch.rand(spec.down_factor, spec.down_factor, generator=generator) + 0.2) / spec.down_factor**2
    found = clear_attention(
        q, k, v, grid=grid, spec=spec, spatial_weight=weight, reference_tokens=reference, scale=0.3, backend=backend
    )
    expected = naive_attention(*(one[0, 0].double() for one in (q, k, v)), grid, spec, weight.double(), text, 0.3)
    torch.testing.assert_close(found[0, 0].double(), expected, rtol=0, atol=2e-6)


def test_pooling_is_the_published_formula_where_the_factor_divides_the_grid():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 3, 8 * 12, 5, generator=generator)
    weight = torch.randn(4, 4, generator=generator)
    # The published code multiplies (…, h/d, d, w/d, d, D) with (1, 1, 1, d, 1, d, 1) and sums over both d.
    cells = tokens.view(2, 3, 2, 4, 3, 4, 5) * weight.view(1, 1, 1, 4, 1, 4, 1)
    torch.testing.assert_close(pool_tokens(tokens, (8, 12), weight), cells.sum(dim=(3, 5)).flatten(2, 3))


def test_a_cut_cell_keeps_the_total_weight():
    weight = torch.rand(3, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    ones = torch.ones(1, 1, 7 * 8, 2)
    pooled = pool_tokens(ones, (7, 8), weight)
    torch.testing.assert_close(pooled, torch.full((1, 1, 9, 2), float(weight.sum())))


def test_weights_that_cancel_in_a_cut_cell_stay_finite():
    weight = torch.tensor([[1.0, 2.0], [-1.0, 2.0]])
    # The last column of a (2, 3) grid has weights 1 and -1, which add up to nothing.
    assert border_gain(weight, (2, 3)).isfinite().all()
    assert pool_tokens(torch.ones(1, 1, 6, 1), (2, 3), weight).isfinite().all()
    assert pool_tokens(torch.ones(1, 1, 6, 1), (2, 3), torch.tensor([[0.0, 2.0], [0.0, 2.0]])).isfinite().all()


def test_a_small_weight_left_alone_in_a_corner_takes_the_whole_total():
    weight = torch.tensor([[0.01, 1.0], [1.0, 1.0]])
    assert border_gain(weight, (3, 3))[1, 1].item() == pytest.approx(301.0)


def test_mean_weight_is_a_mean():
    tokens = torch.arange(16.0).view(1, 1, 16, 1)
    assert pool_tokens(tokens, (4, 4), mean_weight(4)).item() == pytest.approx(7.5)


@pytest.mark.parametrize("split", [0, 1, 5, 9, 10])
def test_merged_parts_are_the_whole(split):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 10, 8, generator=generator) for _ in range(3))

    def attend(keys, values):
        scores = q @ keys.transpose(-1, -2)
        return scores.softmax(dim=-1).nan_to_num(0.0) @ values, scores.logsumexp(dim=-1)

    parts = [*attend(k[:, :, :split], v[:, :, :split]), *attend(k[:, :, split:], v[:, :, split:])]
    for found, expected in zip(merge(*parts), attend(k, v), strict=True):
        torch.testing.assert_close(found, expected)
