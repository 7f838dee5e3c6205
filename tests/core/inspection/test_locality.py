"""Attention mass near a query, clipped rotary distances and the choice of dense blocks, against their definitions."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

from clear_core.dense_blocks import costliest_blocks, dense_blocks_text, parse_dense_blocks
from clear_core.inspection.locality import distances, mass
from clear_core.inspection.locality.distances import Clip, clipped_attention, limits_for
from clear_core.inspection.locality.mass import attention_maps, attention_mass, chosen_queries, radii_for
from clear_core.layout import SequenceLayout
from clear_core.rope import NOT_STRETCHED

LAYOUT = SequenceLayout(3, (5, 7), 2)
HEADS, SIZES = 2, (4, 8, 4)
SIZE = sum(SIZES)
SCALE = 0.4
FREQUENCIES = NOT_STRETCHED.frequencies(100.0, SIZES)
IMAGE = range(LAYOUT.text, LAYOUT.text + LAYOUT.image)


def tokens(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v without RoPE, float32."""
    rng = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, HEADS, LAYOUT.length, SIZE, generator=rng) for _ in range(3))
    return q, k, v


def place(index: int) -> tuple[int, int]:
    """(row, column) of a token of the image; text and references are at the first one, as in FLUX."""
    return divmod(index - LAYOUT.text, LAYOUT.grid[1]) if index in IMAGE else (0, 0)


def axis_of(index: int) -> int:
    """The first rotary axis: references have another place on it."""
    return 1 if index >= IMAGE.stop else 0


def turned(vector: Tensor, position: tuple[float, float, float]) -> Tensor:
    """RoPE by its definition: adjacent pairs of elements, axis after axis, float64."""
    out, start = vector.double().clone(), 0
    for axis, size in enumerate(SIZES):
        for pair in range(size // 2):
            angle = position[axis] * 100.0 ** (-2 * pair / size)
            a, b = vector[start + 2 * pair].item(), vector[start + 2 * pair + 1].item()
            out[start + 2 * pair] = a * math.cos(angle) - b * math.sin(angle)
            out[start + 2 * pair + 1] = a * math.sin(angle) + b * math.cos(angle)
        start += size
    return out


def with_rope(states: Tensor) -> Tensor:
    out = states.double().clone()
    for head in range(HEADS):
        for index in range(LAYOUT.length):
            out[0, head, index] = turned(states[0, head, index], (axis_of(index), *place(index)))
    return out.float()


@functools.cache
def by_pairs(clip: Clip | None) -> Tensor:
    """Attention in float64, pair by pair, from the difference of two positions."""
    q, k, v = tokens()

    def clipped(difference: int) -> int:
        if clip is None:
            return difference
        if clip.side == "far":
            return max(-clip.limit, min(clip.limit, difference))
        sign = -1 if difference < 0 else 1
        return sign * max(abs(difference), clip.limit)

    out = torch.zeros(1, HEADS, LAYOUT.length, SIZE, dtype=torch.float64)
    for head in range(HEADS):
        for i in range(LAYOUT.length):
            scores: list[float] = []
            for j in range(LAYOUT.length):
                dy, dx = (one - other for one, other in zip(place(j), place(i), strict=True))
                if i in IMAGE and j in IMAGE:
                    dy, dx = clipped(dy), clipped(dx)
                key = turned(k[0, head, j], (axis_of(j) - axis_of(i), dy, dx))
                scores.append((q[0, head, i].double() @ key).item() * SCALE)
            out[0, head, i] = torch.tensor(scores, dtype=torch.float64).softmax(0) @ v[0, head].double()
    return out


def under(clip: Clip) -> Tensor:
    q, k, v = tokens()
    return clipped_attention(with_rope(q), with_rope(k), v, LAYOUT, SCALE, clip, FREQUENCIES)


@pytest.mark.parametrize("clip", [Clip("far", 2), Clip("far", 0), Clip("near", 3)], ids=str)
def test_clipped_distances_are_those_of_the_definition(clip: Clip, monkeypatch: pytest.MonkeyPatch):
    wanted = by_pairs(clip)
    assert (wanted - by_pairs(None)).abs().max() > 0.05, "the clip changes something"
    for elements in (2**24, 1):  # The whole grid at once, and one row at a time.
        monkeypatch.setattr(distances, "CHUNK_ELEMENTS", elements)
        assert (under(clip) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("clip", [Clip("far", 6), Clip("far", 100), Clip("near", 0)], ids=str)
def test_a_clip_past_the_grid_is_plain_attention(clip: Clip):
    assert not clip.changes(LAYOUT.grid)
    q, k, v = tokens()
    plain = torch.nn.functional.scaled_dot_product_attention(with_rope(q), with_rope(k), v, scale=SCALE)
    assert (under(clip) - plain).abs().max() < 1e-5


def test_the_definition_without_a_clip_is_plain_attention():
    q, k, v = tokens()
    plain = torch.nn.functional.scaled_dot_product_attention(with_rope(q), with_rope(k), v, scale=SCALE)
    assert (by_pairs(None) - plain).abs().max() < 1e-5


def test_a_clip_leaves_other_queries_alone():
    q, k, v = tokens()
    plain = torch.nn.functional.scaled_dot_product_attention(with_rope(q), with_rope(k), v, scale=SCALE)
    changed = (under(Clip("far", 1)) - plain).abs().amax((0, 1, 3)) > 1e-4
    assert changed[LAYOUT.image_slice].all() and changed.sum() == LAYOUT.image


def test_axes_that_do_not_fill_the_head_are_named():
    with pytest.raises(ValueError, match=r"\[4, 8\] elements; expected 16"):
        clipped_attention(*tokens(), LAYOUT, SCALE, Clip("far", 1), FREQUENCIES[:2])


@pytest.mark.parametrize("elements", [2**24, 1])
def test_mass_is_the_sum_over_enumerated_pairs(elements: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mass, "CHUNK_ELEMENTS", elements)
    q, k, _ = tokens()
    radii, queries = [1, 3, 9], torch.tensor([0, 11, 17, 34])
    found = attention_mass(q, k, LAYOUT, SCALE, radii, queries)
    for head in range(HEADS):
        within, text, reference = [0.0] * 3, 0.0, 0.0
        for index in queries.tolist():
            scores = (q[0, head, LAYOUT.text + index].double() @ k[0, head].double().T) * SCALE
            weights = (scores.exp() / scores.exp().sum()).tolist()
            y, x = divmod(index, 7)
            for j, weight in enumerate(weights):
                if j not in IMAGE:
                    text, reference = text + weight * (j < 3), reference + weight * (j >= 38)
                    continue
                distance = (place(j)[0] - y) ** 2 + (place(j)[1] - x) ** 2
                within = [total + weight * (distance < r * r) for total, r in zip(within, radii, strict=True)]
        assert found.within[head].tolist() == pytest.approx([total / 4 for total in within], abs=1e-6)
        assert found.text[head].item() == pytest.approx(text / 4, abs=1e-6)
        assert found.reference[head].item() == pytest.approx(reference / 4, abs=1e-6)
    assert torch.allclose(found.within[:, 2], found.image, atol=1e-6)


def test_a_head_that_is_planted_local_is_found():
    """Head 0 sees the four neighbours and itself, squared distance below 2; head 1 one far corner."""
    layout = SequenceLayout(0, (5, 7))
    count = layout.image
    q = torch.zeros(1, 2, count, count)
    q[0] = torch.eye(count)
    k = torch.zeros(1, 2, count, count)
    for i in range(count):
        for j in range(count):
            (y, x), (row, column) = divmod(i, 7), divmod(j, 7)
            k[0, 0, j, i] = 60.0 if (row - y) ** 2 + (column - x) ** 2 < 2 else 0.0
            k[0, 1, j, i] = 60.0 if j == count - 1 else 0.0
    found = attention_mass(q, k, layout, 1.0, [1, 2, 3], chosen_queries(count, 0, 0))
    local, far = found.local.tolist()
    assert local[1:] == pytest.approx([1, 1])
    # Of 3, 4 or 5 tokens in the cross, at corners, borders and inside, the query itself is one.
    assert local[0] == pytest.approx((4 / 3 + 16 / 4 + 15 / 5) / count)
    # The queries from which the last corner is closer than the radius: 1, 4 and 9 of them.
    assert far == pytest.approx([1 / count, 4 / count, 9 / count])


def test_maps_are_the_weights_of_one_query():
    q, k, _ = tokens()
    maps = attention_maps(q, k, LAYOUT, SCALE, (2, 3))
    scores = (q[0, :, LAYOUT.text + 2 * 7 + 3, None].double() @ k[0].double().mT)[:, 0] * SCALE
    wanted = scores.softmax(-1)[:, LAYOUT.image_slice].reshape(HEADS, 5, 7)
    assert maps.shape == (HEADS, 5, 7) and (maps - wanted).abs().max() < 1e-6
    with pytest.raises(ValueError, match="x of the query is 7; expected a whole number from 0 to 6"):
        attention_maps(q, k, LAYOUT, SCALE, (2, 7))


def test_a_sample_of_queries_is_seeded_and_without_doubles():
    assert chosen_queries(35, 0, 0).tolist() == chosen_queries(35, 99, 5).tolist() == list(range(35))
    sample = chosen_queries(35, 10, 1).tolist()
    assert sample == chosen_queries(35, 10, 1).tolist() != chosen_queries(35, 10, 2).tolist()
    assert len(set(sample)) == 10 and sample == sorted(sample)


def test_radii_and_limits_end_at_the_grid():
    assert radii_for((32, 32)) == [4, 8, 16, 32, 64] and radii_for((2, 3)) == [4]
    assert limits_for((16, 9)) == [1, 2, 4, 8] and limits_for((18, 9)) == [1, 2, 4, 8, 16] and limits_for((2, 2)) == [1]


@pytest.mark.parametrize("text", ["", "d0", "d0-3, d7, s0, s35-37", "s2"])
def test_the_text_of_blocks_is_read_back(text: str):
    blocks = parse_dense_blocks(text, 19, 38)
    assert dense_blocks_text(blocks) == text
    assert parse_dense_blocks(dense_blocks_text(sorted(blocks, reverse=True)), 19, 38) == blocks


def test_the_costliest_blocks_come_first():
    costs = {("double", 0): 1.0, ("single", 0): 5.0, ("single", 1): 3.0, ("single", 2): 1.0, ("single", 3): 0.0}
    assert costliest_blocks(costs, count=3) == (("single", 0), ("single", 1), ("double", 0))
    assert costliest_blocks(costs, count=0) == ()
    assert costliest_blocks(costs, share=0.5) == (("single", 0),)
    assert costliest_blocks(costs, share=0.51) == (("single", 0), ("single", 1))
    assert len(costliest_blocks(costs, share=1)) == 4, "a block that costs nothing stays windowed"
    assert costliest_blocks(costs, share=0) == ()
    assert costliest_blocks(dict.fromkeys(costs, 0.0), share=1) == ()


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"count": 6}, "count is 6; expected a whole number from 0 to 5"),
        ({"share": 1.5}, "share is 1.5; expected a number from 0 to 1"),
        ({}, "count is None and share None; expected exactly one"),
        ({"count": 1, "share": 0.5}, "expected exactly one"),
    ],
)
def test_a_choice_out_of_range_is_named(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        costliest_blocks({("single", index): 1.0 for index in range(5)}, **given)
