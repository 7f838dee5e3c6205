"""The comparison's attentions against their definitions, written out query by query in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from clear_core import ClearSpec, SequenceLayout
from clear_core.cost import gflops
from demo.experiments.baselines.agent import Agent
from demo.experiments.baselines.compressed import Compressed
from demo.experiments.baselines.full import Full
from demo.experiments.baselines.linear import Linear
from demo.experiments.baselines.neighbourhood import Neighbourhood
from demo.experiments.baselines.registry import KINDS
from demo.experiments.baselines.sigmoid import Sigmoid
from demo.experiments.baselines.strided import Strided
from demo.experiments.baselines.swin import Swin
from demo.experiments.baselines.windows import Windows

HEADS, SIZE = 2, 16
LAYOUTS = [SequenceLayout(3, (8, 4)), SequenceLayout(2, (4, 12), 3), SequenceLayout(0, (8, 8))]
RAGGED = [*LAYOUTS, SequenceLayout(3, (5, 7), 1)]
BOTH = pytest.mark.parametrize("block", [0, 1])


def tensors(layout: SequenceLayout, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, HEADS, layout.length, SIZE, generator=generator, dtype=torch.float64)
    return 2 * q, k, v


def place(layout: SequenceLayout, token: int) -> tuple[int, int] | None:
    """Row and column of a token, None outside the image."""
    return divmod(token - layout.text, layout.grid[1]) if 0 <= token - layout.text < layout.image else None


def softmax_over(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One query, (B, heads, D), over keys and values (B, heads, n, D)."""
    weights = torch.exp((q[:, :, None] * keys).sum(-1) / math.sqrt(SIZE))
    return (weights[..., None] * values).sum(2) / weights.sum(-1)[..., None]


def one_by_one(layout: SequenceLayout, sees, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention in which image token a sees image token b if ``sees(a, b)``; every other pair is seen."""
    out = torch.empty_like(v)
    for i in range(layout.length):
        seen = [j for j in range(layout.length) if pair_is_seen(layout, sees, i, j)]
        out[:, :, i] = softmax_over(q[:, :, i], k[:, :, seen], v[:, :, seen])
    return out


def pair_is_seen(layout: SequenceLayout, sees, i: int, j: int) -> bool:
    a, b = place(layout, i), place(layout, j)
    return a is None or b is None or sees(a, b)


def same_residue(size: int):
    return lambda a, b: (a[0] - b[0]) % size == 0 and (a[1] - b[1]) % size == 0


def nearest_square(size: int, grid: tuple[int, int]):
    """The query's square is the whole one inside the image with its middle nearest to the query."""

    def run(at: int, side: int) -> range:
        length = min(size, side)
        starts = range(side - length + 1)
        start = min(starts, key=lambda start: abs(start + size // 2 - at)) if length == size else 0
        return range(start, start + length)

    return lambda a, b: all(b[axis] in run(a[axis], grid[axis]) for axis in (0, 1))


def rolled_windows(size: int, grid: tuple[int, int], block: int):
    """Swin as its paper has it: pad to whole windows, roll, cut, and mask what the roll brought together."""
    window: dict[tuple[int, int], tuple[int, ...]] = {}
    padded = [-(-side // size) * size for side in grid]
    moved = [size // 2 if block % 2 and side > size else 0 for side in grid]
    for y, x in itertools.product(*map(range, grid)):
        at = [(place - shift) % side for place, shift, side in zip((y, x), moved, padded, strict=True)]
        # The last window holds tokens of both borders; those that came around are another region.
        around = [
            int(shift > 0 and where >= side - shift) for where, shift, side in zip(at, moved, padded, strict=True)
        ]
        window[y, x] = (at[0] // size, at[1] // size, *around)
    return lambda a, b: window[a] == window[b]


PATTERNS = [
    pytest.param(attention, rule, id=attention.name.replace(" ", "-"))
    for attention, rule in (
        (Full(), lambda grid, block: lambda a, b: True),
        (Strided(2), lambda grid, block: same_residue(2)),
        (Strided(3), lambda grid, block: same_residue(3)),
        (Swin(4), lambda grid, block: rolled_windows(4, grid, block)),
        (Swin(3), lambda grid, block: rolled_windows(3, grid, block)),
        (Swin(2), lambda grid, block: rolled_windows(2, grid, block)),
        (Neighbourhood(3), lambda grid, block: nearest_square(3, grid)),
        (Neighbourhood(5), lambda grid, block: nearest_square(5, grid)),
        (Neighbourhood(9), lambda grid, block: nearest_square(9, grid)),
        (Windows(ClearSpec(3)), lambda grid, block: lambda a, b: (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 < 9),
    )
]


@BOTH
@pytest.mark.parametrize("layout", RAGGED, ids=str)
@pytest.mark.parametrize("attention, rule", PATTERNS)
def test_patterns(attention, rule, layout, block):
    q, k, v = tensors(layout)
    sees = rule(layout.grid, block)
    torch.testing.assert_close(attention(q, k, v, layout, block), one_by_one(layout, sees, q, k, v), rtol=0, atol=1e-6)
    listed = itertools.product(range(layout.length), repeat=2)
    assert attention.pairs(layout, block) == sum(pair_is_seen(layout, sees, i, j) for i, j in listed)


def cells(layout: SequenceLayout, size: int) -> list[list[int]]:
    """Tokens of each square of the image, row-major."""
    found: dict[tuple[int, int], list[int]] = {}
    for token in range(layout.text, layout.text + layout.image):
        y, x = place(layout, token) or (0, 0)
        found.setdefault((y // size, x // size), []).append(token)
    return [found[cell] for cell in sorted(found)]


def others(layout: SequenceLayout) -> list[int]:
    return [token for token in range(layout.length) if place(layout, token) is None]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("trained", [False, True])
def test_compressed_keys(layout, size, trained):
    q, k, v = tensors(layout)
    attention = Compressed(size)
    weight = attention.first_weight(HEADS, SIZE).double()
    if trained:
        weight = weight + torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outside, squares = others(layout), cells(layout, size)
    out = torch.empty_like(v)
    for i in range(layout.length):
        keys, values = k, v
        if place(layout, i) is not None:
            keys, values = (
                torch.stack(
                    [tokens[:, :, j] for j in outside]
                    + [
                        sum(weight[:, :, n // size, n % size] * tokens[:, :, j] for n, j in enumerate(square))
                        for square in squares
                    ],
                    dim=2,
                )
                for tokens in (k, v)
            )
        out[:, :, i] = softmax_over(q[:, :, i], keys, values)
    found = attention(q, k, v, layout, 0, weight if trained else None)
    torch.testing.assert_close(found, out, rtol=0, atol=1e-6)
    assert attention.pairs(layout) == len(outside) * layout.length + layout.image * (len(outside) + len(squares))


@pytest.mark.parametrize("layout", RAGGED, ids=str)
@pytest.mark.parametrize("size", [2, 3])
def test_agents(layout, size):
    q, k, v = tensors(layout)
    outside, squares = others(layout), cells(layout, size)
    image = [j for j in range(layout.length) if j not in outside]
    agents = torch.stack([sum(q[:, :, j] for j in square) / len(square) for square in squares], dim=2)
    answers = torch.stack(
        [softmax_over(agents[:, :, n], k[:, :, image], v[:, :, image]) for n in range(len(squares))], dim=2
    )
    keys, values = torch.cat([k[:, :, outside], agents], dim=2), torch.cat([v[:, :, outside], answers], dim=2)
    out = torch.empty_like(v)
    for i in range(layout.length):
        out[:, :, i] = softmax_over(q[:, :, i], *((k, v) if i in outside else (keys, values)))
    # The means are summed in float32, as pooled keys are.
    torch.testing.assert_close(Agent(size)(q, k, v, layout), out, rtol=0, atol=1e-5)
    counted = len(outside) * layout.length + layout.image * (len(outside) + 2 * len(squares))
    assert Agent(size).pairs(layout) == counted


@pytest.mark.parametrize("layout", RAGGED, ids=str)
def test_sigmoid(layout):
    q, k, v = tensors(layout)
    out = torch.zeros_like(v)
    for i, j in itertools.product(range(layout.length), repeat=2):
        score = (q[:, :, i] * k[:, :, j]).sum(-1) / math.sqrt(SIZE)
        out[:, :, i] += (1 / (1 + layout.length * torch.exp(-score)))[..., None] * v[:, :, j]
    torch.testing.assert_close(Sigmoid()(q, k, v, layout), out, rtol=0, atol=1e-9)


@pytest.mark.parametrize("layout", RAGGED, ids=str)
def test_linear(layout):
    """As weights of every pair, without the sums that make it linear."""
    q, k, v = tensors(layout)

    def positive(x: Tensor) -> Tensor:
        return torch.where(x > 0, x + 1, x.exp())

    weights = (positive(q)[:, :, :, None] * positive(k)[:, :, None]).sum(-1)
    out = (weights[..., None] * v[:, :, None]).sum(3) / weights.sum(-1)[..., None]
    torch.testing.assert_close(Linear()(q, k, v, layout), out, rtol=0, atol=1e-9)


@pytest.mark.parametrize("attention", [Linear(width=SIZE), Sigmoid()], ids=lambda one: one.name)
def test_operations_are_those_of_the_products(attention):
    """With one head of the counted width, what torch multiplies is what is counted."""
    layout = SequenceLayout(3, (5, 7))
    q, k, v = (part[:1, :1] for part in tensors(layout))
    with FlopCounterMode(display=False) as counter:
        attention(q, k, v, layout)
    assert counter.get_total_flops() == round(1e9 * gflops(attention.pairs(layout), SIZE))


def test_pooled_windows_have_a_weight_that_is_used():
    layout, spec = LAYOUTS[0], ClearSpec(2, 2)
    q, k, v = tensors(layout)
    attention = Windows(spec)
    first = attention.first_weight(HEADS, SIZE)
    assert torch.equal(first, torch.full((2, 2), 0.25))
    assert torch.equal(attention(q, k, v, layout), attention(q, k, v, layout, 0, first))
    other = attention(q, k, v, layout, 0, first + torch.eye(2)) - attention(q, k, v, layout)
    assert other[:, :, layout.image_slice].abs().max() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_near(kind):
    layout = SequenceLayout(8, (16, 16))
    q, k, v = tensors(layout)
    attention = KINDS[kind].make(3 if kind == "neighbourhood" else 4)
    low = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), layout)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), attention(q, k, v, layout), rtol=0, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_refuses_another_layout(kind):
    q, k, v = tensors(SequenceLayout(3, (8, 4)))
    attention = KINDS[kind].make(3 if kind == "neighbourhood" else 4)
    with pytest.raises(ValueError, match="with the 36 tokens of the layout"):
        attention(q, k, v, SequenceLayout(4, (8, 4)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Neighbourhood(4), "is 4; expected an odd number"),
        (lambda: Swin(0), "the side of a window is 0; expected an integer of at least 1"),
        (lambda: Strided(True), "the stride is True; expected an integer"),
        (lambda: Compressed(4).pairs(SequenceLayout(0, (8, 6))), "the grid is 8 x 6 tokens; expected sides that 4"),
    ],
    ids=["even", "none", "boolean", "ragged"],
)
def test_sizes_that_do_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()
