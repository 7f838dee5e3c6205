"""Small CLEAR files of any family with seeded random weights. Nothing was trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RANK = 3


def random_tensors(
    trained: Any, width: int, num_double: int, num_single: int, seed: int = 7, scale: float = 1.0
) -> dict[str, Tensor]:
    """Trained tensors of a family by canonical name.

    Args:
        trained: The family's ``TrainedSet``.
        scale: Of a weight's elements, in units of 1 / sqrt(width).
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(name: str) -> Tensor:
        shape = (width, width) if name.endswith(".weight") else (width,)
        return torch.randn(shape, generator=generator) * scale * width**-0.5

    return {name: drawn(name) for name in trained.names(num_double, num_single)}


def random_spatial(num_double: int, num_single: int, d: int = 2) -> dict[tuple[str, int], Tensor]:
    """A (d, d) pooling weight for every block, no two alike."""
    blocks = [("double", index) for index in range(num_double)] + [("single", index) for index in range(num_single)]
    return {block: torch.arange(1.0, d * d + 1).reshape(d, d) / 10 + at / 100 for at, block in enumerate(blocks)}


def random_factors(
    tensors: Mapping[str, Tensor], rank: int = RANK, seed: int = 11
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Factors of low rank and changes of biases, by layer, for all of ``tensors``."""
    generator = torch.Generator().manual_seed(seed)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    biases: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, end = name.rpartition(".")
        width = len(tensor)
        if end == "bias":
            biases[layer] = torch.randn(width, generator=generator) * 0.1
        else:
            down = torch.randn(rank, width, generator=generator) * width**-0.5
            factors[layer] = (down, torch.randn(width, rank, generator=generator) * 0.3)
    return factors, biases


def whole_change(factors: Mapping[str, tuple[Tensor, Tensor]], biases: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same change by canonical name of each tensor, multiplied out."""
    change = {f"{layer}.weight": up @ down for layer, (down, up) in factors.items()}
    return change | {f"{layer}.bias": bias for layer, bias in biases.items()}


def save_random(weights: Any, path: Path, family: str, kind: str, sizes: tuple[int, int, int], d: int = 1) -> Any:
    """A CLEAR file of a family and kind; of "delta" and "lora" the same change of low rank.

    Args:
        weights: The package ``clear_core.weights`` in use.
        sizes: Width, double and single blocks.
        d: Down factor.
    """
    trained = weights.TRAINED_SETS[family]
    header = weights.ClearHeader(3, d, family=family)
    tensors = random_tensors(trained, *sizes)
    spatial = random_spatial(*sizes[1:], d) if d > 1 else {}
    factors, biases = random_factors(tensors)
    if kind == "lora":
        return weights.save_clear_lora(path, factors, biases, spatial, header)
    if kind == "delta":
        header = weights.ClearHeader(3, d, "delta", family=family)
        return weights.save_clear_file(path, whole_change(factors, biases), spatial, header)
    return weights.save_clear_file(path, tensors, spatial, header)
