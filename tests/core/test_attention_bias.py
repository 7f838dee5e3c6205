"""Attention masks inside the windows: against a softmax written out in float64, for every shape a mask may have."""

import logging
import random
from dataclasses import dataclass
from functools import lru_cache

import pytest
import torch

from clear_core import ClearSpec, SequenceLayout, clear_attention
from clear_core.attention import AttentionBias
from clear_core.attention import choose as backends
from clear_core.attention.backends import gather
from clear_core.attention.bias import LOOK_NUMBERS
from clear_core.attention.merge import merge
from clear_core.attention.pool import pool_tokens


def written_out(q, k, v, layout, spec, weight, scale, bias):
    """Output and log-sum-exp in float64; a query that sees no key gets zeros and -inf.

    Args:
        bias: (B|1, heads|1, L|1, T or L), or None.
    """
    q, k, v = (one.double() for one in (q, k, v))
    (height, width), text = layout.grid, layout.text
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    seen = torch.ones(layout.length, layout.length, dtype=torch.bool)
    distance = (places[:, None] - places).square().sum(dim=-1)
    seen[layout.image_slice, layout.image_slice] = distance < spec.radius**2
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen, -torch.inf)
    level = torch.zeros(1, 1, 1, dtype=torch.float64)
    if bias is not None:
        numbers = torch.where(bias, 0.0, -torch.inf).double() if bias.dtype == torch.bool else bias.double()
        scores[..., : numbers.shape[-1]] += numbers
        if numbers.shape[-1] > text:
            level = numbers[..., text]
    if spec.pools:
        keys, values = (pool_tokens(one[:, :, layout.image_slice], layout.grid, weight).double() for one in (k, v))
        pooled = q @ keys.transpose(-1, -2) * scale + level[..., None]
        outside = torch.ones(layout.length, dtype=torch.bool)
        outside[layout.image_slice] = False
        scores = torch.cat([scores, pooled.masked_fill(outside[:, None], -torch.inf)], dim=-1)
        v = torch.cat([v, values], dim=2)
    blind = (scores == -torch.inf).all(dim=-1, keepdim=True)
    shares = scores.masked_fill(blind, 0.0).softmax(dim=-1).masked_fill(blind, 0.0)
    return shares @ v, scores.logsumexp(dim=-1)


@dataclass(frozen=True)
class Case:
    """One random call and its mask."""

    seed: int
    kind: str
    dtype: torch.dtype
    layout: SequenceLayout
    spec: ClearSpec
    batch: int
    heads: int
    masks: tuple[int, int]
    one_row: bool
    chunk_bytes: int | None

    def __str__(self):
        parts = [
            f"{self.seed}",
            self.kind,
            str(self.dtype).removeprefix("torch."),
            f"T{self.layout.text}-{self.layout.grid[0]}x{self.layout.grid[1]}-R{self.layout.reference}",
            f"r{self.spec.radius}d{self.spec.down_factor}",
            f"{self.batch}x{self.heads}",
            f"masks{self.masks[0]}x{self.masks[1]}",
        ]
        return "-".join(parts + ["one_row"] * self.one_row + [f"chunk{self.chunk_bytes}"] * bool(self.chunk_bytes))

    @classmethod
    def draw(cls, seed):
        draw = random.Random(seed)
        batch, heads = draw.choice([1, 1, 2, 3]), draw.choice([1, 2, 3])
        kind = draw.choice(["text", "free", "level", "pairs", "pairs"])
        longest = draw.choice([1, 8, 20, 27])
        layout = SequenceLayout(
            draw.choice([0, 1, 7, 64]), (draw.randint(1, longest), draw.randint(1, longest)), draw.choice([0, 0, 1, 30])
        )
        spec = ClearSpec(draw.choice([1, 2, 3, 8, 13, 80]), 1 if kind == "pairs" else draw.choice([1, 1, 2, 3]))
        return cls(
            seed,
            kind,
            draw.choice([torch.bool, torch.float32]),
            layout,
            spec,
            batch,
            heads,
            (draw.choice([1, batch]), draw.choice([1, heads])),
            draw.random() < 0.15,
            draw.choice([None, None, 1, 100_000]),
        )

    def bias(self):
        generator = torch.Generator().manual_seed(self.seed)
        layout = self.layout
        rows = 1 if self.one_row else layout.length
        bias = torch.randn(*self.masks, rows, layout.length, generator=generator)
        hidden = torch.rand(bias.shape, generator=generator) < 0.4
        bias = ~hidden if self.dtype == torch.bool else bias.masked_fill(hidden, -torch.inf)
        image = layout.image_slice
        queries = slice(None) if self.one_row else image
        if self.kind == "text":
            return bias[..., : layout.text]
        if self.kind == "free":
            bias[..., queries, image] = True if self.dtype == torch.bool else 0.0
        elif self.kind == "level":
            bias[..., queries, image] = bias[..., queries, image.start, None].clone()
        return bias

    def inputs(self, dtype=torch.float32):
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.batch, self.layout.length, 3, self.heads, 16)
        return torch.randn(shape, generator=generator).to(dtype).permute(2, 0, 3, 1, 4).unbind()

    def weight(self):
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(self.spec.down_factor, self.spec.down_factor, generator=generator) / self.spec.down_factor**2

    def run(self, backend, dtype=torch.float32, **options):
        return clear_attention(
            *self.inputs(dtype),
            grid=self.layout.grid,
            spec=self.spec,
            scale=0.3,
            spatial_weight=self.weight(),
            reference_tokens=self.layout.reference,
            bias=self.bias(),
            backend=backend,
            **options,
        )

    @lru_cache(maxsize=4)
    def expected(self, dtype=torch.float32, rounded=False, masked=True):
        """What should come out of the inputs in ``dtype``, with the mask rounded to it, or without the mask."""
        bias = self.bias() if masked else None
        if rounded and bias.is_floating_point():
            bias = bias.to(dtype)
        return written_out(*self.inputs(dtype), self.layout, self.spec, self.weight(), 0.3, bias)


def cases(number, **fixed):
    drawn = [Case.draw(seed) for seed in range(number)]
    return [
        pytest.param(case, id=str(case))
        for case in drawn
        if all(getattr(case, name) == value for name, value in fixed.items())
    ]


@pytest.mark.parametrize("backend", ["dense", "gather", "auto"])
@pytest.mark.parametrize("case", cases(100))
def test_a_mask_is_what_is_written_out(case, backend):
    found = case.run(backend, chunk_bytes=case.chunk_bytes)
    torch.testing.assert_close(found.double(), case.expected()[0], rtol=0, atol=3e-6)


@pytest.mark.parametrize("backend", ["dense", "gather"])
@pytest.mark.parametrize("case", cases(40))
def test_the_log_sum_exp_counts_the_mask(case, backend):
    found, lse = case.run(backend, return_lse=True, chunk_bytes=case.chunk_bytes)
    expected, expected_lse = case.expected()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=3e-6)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize("dtype, atol", [(torch.bfloat16, 1.2e-2), (torch.float16, 2e-3)], ids=str)
@pytest.mark.parametrize("case", cases(60, kind="pairs", dtype=torch.float32)[:6] + cases(60, kind="text")[:6])
def test_half_precision(case, dtype, atol):
    """The mask is rounded to the dtype, as the host's attention does it."""
    found, expected = case.run("gather", dtype), case.expected(dtype, rounded=True)[0]
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)


def test_the_masks_of_the_sweep_matter():
    """The cases above would pass without looking at the mask only if it changed nothing."""
    changed = [
        not torch.allclose(case.expected()[0], case.expected(masked=False)[0], atol=1e-3)
        for case in map(Case.draw, range(60))
        if case.bias().shape[-1] and case.layout.length > 2
    ]
    assert sum(changed) > 0.9 * len(changed)


@pytest.mark.parametrize("kind, image", [("text", "none"), ("free", "none"), ("level", "level"), ("pairs", "pairs")])
@pytest.mark.parametrize("one_row", [False, True], ids=["rows", "one_row"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
def test_what_a_mask_does_between_image_tokens(kind, image, one_row, dtype):
    case = Case(3, kind, dtype, SequenceLayout(7, (5, 9), 4), ClearSpec(2), 2, 3, (2, 3), one_row, None)
    assert AttentionBias.of(case.bias(), case.layout).image == image


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_one_number_in_a_large_mask_is_found(last, monkeypatch):
    monkeypatch.setattr("clear_core.attention.bias.LOOK_NUMBERS", 1000)
    layout = SequenceLayout(3, (20, 20))
    bias = torch.zeros(1, 1, 403, 403)
    assert AttentionBias.of(bias, layout).image == "none"
    bias[..., 402 if last else 3, 402 if last else 3] = 1.0
    assert AttentionBias.of(bias, layout).image == "pairs"
    bias[..., 402 if last else 3, 3:] = 1.0
    assert AttentionBias.of(bias, layout).image == "level"


def test_looking_through_a_mask_makes_nothing_as_large():
    layout = SequenceLayout(0, (96, 96))
    bias = torch.ones(1, 1, 96 * 96, 96 * 96, dtype=torch.bool)
    assert bias.numel() > LOOK_NUMBERS
    largest = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() != bias.untyped_storage().data_ptr():
                largest.append(out.untyped_storage().nbytes())
            return out

    with Watch():
        assert AttentionBias.of(bias, layout).image == "none"
    assert 0 < max(largest) <= LOOK_NUMBERS


@pytest.mark.parametrize("kind", ["text", "pairs"])
def test_a_mask_that_was_looked_through_serves_any_number_of_calls(kind):
    case = Case(5, kind, torch.float32, SequenceLayout(7, (19, 21), 2), ClearSpec(3), 2, 2, (2, 1), False, None)
    bias = AttentionBias.of(case.bias(), case.layout)
    q, k, v = case.inputs()
    for spec in (ClearSpec(3), ClearSpec(6)):
        options = {"grid": case.layout.grid, "spec": spec, "reference_tokens": 2}
        assert torch.equal(
            clear_attention(q, k, v, bias=bias, **options), clear_attention(q, k, v, bias=case.bias(), **options)
        )
    with pytest.raises(ValueError, match="looked through for .*grid=.19, 21.*expected .*grid=.21, 19"):
        clear_attention(q, k, v, bias=bias, grid=(21, 19), spec=ClearSpec(3), reference_tokens=2)


@pytest.mark.parametrize("return_lse", [False, True], ids=["out", "lse"])
@pytest.mark.parametrize("kind", ["text", "free", "level"])
def test_many_pooled_keys(kind, return_lse, monkeypatch):
    """Merged where all image keys are alike to the mask; a row's own number for them is the pooled keys' too."""
    merged = []
    monkeypatch.setattr(gather, "merge", lambda *parts: merged.append(1) or merge(*parts))
    case = Case(8, kind, torch.float32, SequenceLayout(9, (51, 47), 3), ClearSpec(6, 2), 2, 2, (1, 2), False, None)
    found = case.run("gather", return_lse=return_lse)
    assert bool(merged) == (kind != "level")
    for one, expected in zip(found if return_lse else [found], case.expected(), strict=False):
        torch.testing.assert_close(one.double(), expected, rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize("backend", ["dense", "gather"])
@pytest.mark.parametrize("number", [False, -torch.inf], ids=["bool", "float"])
def test_a_query_that_sees_nothing_gets_zeros(number, backend):
    layout = SequenceLayout(5, (18, 20), 2)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, layout.length, 16, generator=generator).requires_grad_() for _ in range(3))
    bias = torch.ones(1, 1, layout.length, layout.length).to(torch.bool if number is False else torch.float32)
    blind = [1, 40, 41, 366]
    bias[:, :, blind] = number
    options = {"grid": layout.grid, "spec": ClearSpec(4), "reference_tokens": 2, "bias": bias, "backend": backend}
    out = clear_attention(q, k, v, **options)
    assert out.isfinite().all()
    assert torch.equal(out[:, :, blind], torch.zeros(1, 2, 4, 16))
    assert (out.detach().abs().amax(dim=-1) > 0).sum() == 2 * (layout.length - 4)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(out.square().sum(), (q, k, v)))
    with torch.no_grad():
        _, lse = clear_attention(q, k, v, return_lse=True, **options)
    assert (lse == -torch.inf).nonzero()[:, 2].unique().tolist() == blind


@pytest.mark.parametrize("kind", ["text", "level", "pairs"])
def test_gradients_are_the_written_out_ones(kind):
    case = Case(7, kind, torch.float32, SequenceLayout(5, (18, 19), 2), ClearSpec(4), 2, 2, (2, 2), False, 200_000)
    towards = torch.randn(2, 2, case.layout.length, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = []
    for attend in ("dense", "gather", written_out):
        q, k, v = (one.double().requires_grad_() for one in case.inputs())
        if attend is written_out:
            out = written_out(q, k, v, case.layout, case.spec, None, 0.3, case.bias())[0]
        else:
            out = clear_attention(
                q,
                k,
                v,
                grid=case.layout.grid,
                spec=case.spec,
                scale=0.3,
                reference_tokens=2,
                bias=case.bias(),
                backend=attend,
                chunk_bytes=case.chunk_bytes,
            )
        gradients.append(torch.autograd.grad(out, (q, k, v), towards))
    for found in gradients[:2]:
        for one, expected in zip(found, gradients[2], strict=True):
            torch.testing.assert_close(one, expected, rtol=0, atol=1e-10)


def test_a_mask_takes_no_more_memory_than_a_chunk(monkeypatch):
    """The numbers of one chunk's masks, for windows and for text queries."""
    case = Case(2, "pairs", torch.float32, SequenceLayout(40, (50, 48)), ClearSpec(5), 1, 4, (1, 4), False, 500_000)
    made = []
    for name in ("tiles", "rows"):
        original = getattr(AttentionBias, name)

        def watched(self, *arguments, original=original):
            made.append(original(self, *arguments))
            return made[-1]

        monkeypatch.setattr(AttentionBias, name, watched)
    case.run("gather", chunk_bytes=case.chunk_bytes)
    smallest_tile = 4 * 4 * 16 * 16 * (40 + 24 * 24)
    assert len(made) > 10
    assert max(one.numel() * 4 for one in made) <= max(case.chunk_bytes, 2 * smallest_tile)


@pytest.mark.parametrize("backend, said", [("flex", 1), ("triton", 1), ("gather", 0), ("auto", 0)])
def test_a_kernel_that_takes_no_mask_leaves_it_to_gather_and_says_so_once(backend, said, monkeypatch, caplog):
    monkeypatch.setattr(backends, "_said", set())
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
