"""How many operations gathered attention takes in a call: without a compiler each one costs a launch."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from clear_core import ClearSpec, clear_attention
from clear_core.attention import budget
from clear_core.attention.tiling import classes, gathered


class Operations(TorchDispatchMode):
    """Counts what is dispatched, views apart."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if not operation.is_view:
            self.counts[str(operation)] += 1
        return operation(*args, **(kwargs or {}))


GRIDS = [(64, 64), (128, 128), (68, 120), (100, 131), pytest.param((256, 256), marks=pytest.mark.slow)]
CASES = [(8, 1, 90), (16, 1, 90), (32, 1, 250), (8, 4, 250), (16, 4, 250), (32, 4, 250)]


@pytest.mark.parametrize("tiles_of", ["cpu", "cuda"])
@pytest.mark.parametrize("radius, down_factor, most", CASES)
@pytest.mark.parametrize("grid", [*GRIDS, pytest.param((512, 512), marks=pytest.mark.slow)], ids=str)
def test_a_call_takes_few_operations(grid, radius, down_factor, most, tiles_of, monkeypatch):
    """One small head, so that chunks are no matter; the second call, when indices and masks are kept."""
    tile = classes.query_tile(torch.device(tiles_of), radius)
    for module in (gathered, "clear_core.attention.backends.gather"):
        name = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{name}.query_tile", lambda device, radius: tile)
    # Pooled keys are attended to in pieces of a third of a second, for interrupts; their launches are no matter then.
    monkeypatch.setattr(budget, "CPU_PAIRS", 2**40)
    gathered.PLANS.clear()
    q, k, v = torch.zeros(3, 1, 1, 512 + grid[0] * grid[1], 16).unbind()
    options = {"grid": grid, "spec": ClearSpec(radius, down_factor), "backend": "gather", "chunk_bytes": 2**30}
    with torch.no_grad():
        clear_attention(q, k, v, **options)
        with Operations() as made:
            clear_attention(q, k, v, **options)
    gathered.PLANS.clear()
    assert 10 < sum(made.counts.values()) <= most, made.counts.most_common(5)
