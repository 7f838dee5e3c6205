"""Gradients through the windows are those of the plain dense backend."""

from __future__ import annotations

import random

import pytest
import torch

from clear_core import ClearSpec, clear_attention


def random_case(index: int) -> dict[str, int]:
    chance = random.Random(index)
    return {
        "height": chance.randint(1, 19),
        "width": chance.randint(1, 19),
        "text": chance.choice((0, 1, 5, 17)),
        "radius": chance.randint(1, 9),
        "down": chance.choice((1, 1, 2, 3, 4)),
        "batch": chance.randint(1, 2),
        "heads": chance.randint(1, 2),
        "dim": chance.choice((16, 24, 32)),
        "reference": chance.choice((0, 0, 4)),
    }


def gradients(case: dict[str, int], backend: str) -> list[torch.Tensor]:
    """Of q, k, v and, where there is one, the pooling weight, under a random loss."""
    generator = torch.Generator().manual_seed(case["height"] * 100 + case["width"])
    length = case["text"] + case["height"] * case["width"] + case["reference"]
    shape = (case["batch"], case["heads"], length, case["dim"])
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for _ in range(3)]
    spec = ClearSpec(case["radius"], case["down"])
    weight = torch.rand(case["down"], case["down"], generator=generator).requires_grad_() if spec.pools else None
    out = clear_attention(
        *leaves,
        grid=(case["height"], case["width"]),
        spec=spec,
        spatial_weight=weight,
        reference_tokens=case["reference"],
        backend=backend,
    )
    loss = (out * torch.randn(out.shape, generator=generator)).sum()
    return list(torch.autograd.grad(loss, leaves + ([] if weight is None else [weight])))


@pytest.mark.parametrize("index", range(30), ids=lambda i: "-".join(f"{k[0]}{v}" for k, v in random_case(i).items()))
def test_gather_gradients_are_dense_gradients(index: int):
    case = random_case(index)
    for mine, theirs in zip(gradients(case, "gather"), gradients(case, "dense"), strict=True):
        # Relative to the largest: a pooling weight's gradient sums over all cells.
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * max(1.0, theirs.abs().max().item()))


def test_dense_gradients_are_the_derivative():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 15, 16, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3))

    def attend(*parts: torch.Tensor) -> torch.Tensor:
        return clear_attention(*parts, grid=(3, 4), spec=ClearSpec(2), reference_tokens=1, backend="dense")

    assert torch.autograd.gradcheck(attend, (q, k, v))
