"""The delta as a low-rank LoRA file, for loaders that take nothing else; local variants only.

A pooled variant needs its ``spatial_weight``, and the biases' part has no place either: loaders cannot add to a slice
of a fused bias. What is lost is returned as numbers, not hidden.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .delta import difference, read_pair
from .errors import ClearFileError
from .writer import OnTensor, write_safetensors

# Extra directions and passes of the randomised decomposition; the energy reported is what it really found.
OVERSAMPLING, PASSES = 8, 4


@dataclass(frozen=True)
class Energy:
    """How much of a delta a LoRA keeps.

    Attributes:
        kept: Rank to the share of the weights' energy (sum of squares over all layers), 0 to 1; powers of two up to
            the file's rank, and that rank.
        biases: Share that the biases, which a LoRA cannot hold, have in the energy of the whole delta.
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

    diffusers and ComfyUI's own LoRA loaders read it; strength 1 is the whole of it (no alpha is stored).

    Args:
        base: The file of the model it was trained from, or its shards.
        clear: The CLEAR file, of a local variant.
        out: Where to write.
        rank: 1 to the width of the model.
        force: Whether an existing file may be replaced.

    Raises:
        ClearFileError: A pooled variant, a rank out of range, two files that do not belong together, or ``out`` cannot
            be written.
    """
    model, file = read_pair(base, clear)
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

    # Up and down of a layer are written one after the other, so that one is kept.
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

    plan = {}
    for name in weights:
        layer, dtype = "transformer." + name.removesuffix(".weight"), tensors[name].dtype
        plan[f"{layer}.lora_A.weight"] = (dtype, (rank, file.width))
        plan[f"{layer}.lora_B.weight"] = (dtype, (file.width, rank))

    def make(key: str) -> Tensor:
        layer, end, _ = key.rsplit(".", 2)
        return factors(layer.removeprefix("transformer.") + ".weight")[end == "lora_B"]

    header = {
        "format": "pt",
        "clear.radius": str(file.radius),
        "clear.lora_rank": str(rank),
        "clear.source": f"{file.name} minus {model.label}",
    }
    write_safetensors(out, plan, make, header, force=force, on_tensor=on_tensor)
    lost = sum(difference(model, tensors, name).double().square().sum() for name in tensors if name.endswith(".bias"))
    ranks = [2**power for power in range(rank.bit_length()) if 2**power < rank] + [rank]
    return Energy({r: share(found[:r].sum(), total) for r in ranks}, share(lost, total + lost))


def decompose(delta: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (width, rank), S (rank,) and V (width, rank) of the leading part of a (width, width) matrix."""
    if rank + OVERSAMPLING >= min(delta.shape):
        u, s, vh = torch.linalg.svd(delta, full_matrices=False)
        v = vh.T
    else:
        # The same file from the same inputs, and nobody else's random numbers disturbed.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(delta, q=rank + OVERSAMPLING, niter=PASSES)
    return u[:, :rank], s[:rank], v[:, :rank]


def share(part: Tensor, whole: Tensor) -> float:
    return float(part / whole) if whole > 0 else 1.0
