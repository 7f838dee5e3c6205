"""The delta as a low-rank LoRA file, for loaders of LoRAs alone; local variants only.

Such loaders take neither the ``spatial_weight`` of a pooled variant nor biases: they cannot add to a slice of a fused
bias. The loss is measured and returned. Our own loaders read the file too: it is a CLEAR file of kind "lora" without
biases.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from .delta import difference, read_pair
from .errors import ClearFileError
from .reader import read_clear_file
from .writer import OnTensor, write_safetensors

# Extra directions and passes of the randomised decomposition; the reported energy is measured on its result.
OVERSAMPLING, PASSES = 8, 4


@dataclass(frozen=True)
class Energy:
    """Share of a delta that a LoRA keeps.

    Attributes:
        kept: Rank to the share of the weights' energy (sum of squares over all layers), 0 to 1; powers of two up to
            the file's rank, and that rank.
        biases: Share of the biases, which a LoRA cannot hold, in the energy of the whole delta.
    """

    kept: dict[int, float]
    biases: float


def save_lora(
    base: Sequence[str | os.PathLike[str]],
    clear: str | os.PathLike[str],
    out: str | os.PathLike[str],
    rank: int,
    *,
    force: bool = False,
    on_tensor: OnTensor | None = None,
) -> Energy:
    """Writes CLEAR minus base as a LoRA of the given rank, in diffusers' names (``transformer.….lora_A.weight``).

    diffusers and ComfyUI's own LoRA loaders read it; strength 1 is the full effect (no alpha is stored).

    Args:
        base: File (or shards) of the model that it was trained from.
        clear: The CLEAR file, of a local variant.
        out: File to write.
        rank: 1 to the width of the model.
        force: Whether an existing file may be replaced.

    Raises:
        ClearFileError: A pooled variant, a rank out of range, files that do not belong together, or ``out`` cannot
            be written.
    """
    model, file, stated = read_pair(base, clear)
    if file.down_factor > 1:
        raise ClearFileError(
            f"{file.name} pools {file.down_factor} x {file.down_factor}, which a LoRA cannot hold; "
            f"write a delta file without --lora."
        )
    if not 1 <= rank <= file.width:
        raise ClearFileError(f"the rank is {rank}; expected 1 to {file.width}.")
    tensors = file.tensors()
    weights = [name for name in tensors if name.endswith(".weight")]
    found = torch.zeros(rank, dtype=torch.float64)
    total = torch.zeros((), dtype=torch.float64)

    # A layer's two factors are written one after the other, so one decomposition is cached.
    @lru_cache(maxsize=1)
    def factors(name: str) -> tuple[Tensor, Tensor]:
        delta = difference(model, tensors, name)
        if not delta.isfinite().all():
            raise ClearFileError(
                f"{file.name} minus {model.label} is NaN or infinite in {name}; one of the two is damaged."
            )
        u, s, v = decompose(delta, rank)
        found.add_(s.double().square())
        total.add_(delta.double().square().sum())
        return (v * s.sqrt()).T, u * s.sqrt()

    contents: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for name in weights:
        layer, dtype = "transformer." + name.removesuffix(".weight"), tensors[name].dtype
        contents[f"{layer}.lora_A.weight"] = (dtype, (rank, file.width))
        contents[f"{layer}.lora_B.weight"] = (dtype, (file.width, rank))

    def make(key: str) -> Tensor:
        layer, end, _ = key.rsplit(".", 2)
        return factors(layer.removeprefix("transformer.") + ".weight")[end == "lora_B"]

    header = replace(stated, kind="lora", lora_rank=rank).metadata()
    write_safetensors(out, contents, make, header, force=force, on_tensor=on_tensor, check=read_clear_file)
    lost = torch.zeros((), dtype=torch.float64)
    for name in tensors:
        if name.endswith(".bias"):
            lost += difference(model, tensors, name).double().square().sum()
    ranks = [2**power for power in range(rank.bit_length()) if 2**power < rank] + [rank]
    return Energy({r: ratio(found[:r].sum(), total) for r in ranks}, ratio(lost, total + lost))


def decompose(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (width, rank), S (rank,) and V (width, rank) of the leading part of a (width, width) matrix."""
    if rank + OVERSAMPLING >= min(delta.shape):
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        v = vh.T
    else:
        # Equal inputs give equal files, and the caller's random state is untouched.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(delta, q=rank + OVERSAMPLING, niter=PASSES)
    return u[:, :rank], s[:rank], v[:, :rank]


def ratio(part: Tensor, whole: Tensor) -> float:
    """``part / whole`` of two scalars; 1 if both are 0."""
    return float(part / whole) if whole > 0 else 1.0
