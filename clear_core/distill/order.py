"""The order of samples in training: which of them share a global batch."""

from __future__ import annotations

import functools
import random
from collections import defaultdict
from collections.abc import Sequence

MOST_NAMED = 4
"""Shapes named in a sentence."""


class Order:
    """The samples in the global batch of each step: a pure function of the seed and the step.

    All processes of a training take their shares of one global batch, and so get equal shapes.

    Args:
        shapes: What must be equal within a batch, for every sample.
        size: Samples in a global batch. A shape with fewer samples left repeats some; :func:`remarks` says which.
        seed: Seed of the shuffling.
    """

    def __init__(self, shapes: Sequence[object], size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.buckets: dict[object, list[int]] = defaultdict(list)
        for index, shape in enumerate(shapes):
            self.buckets[shape].append(index)
        self.per_epoch = sum(-(-len(bucket) // size) for bucket in self.buckets.values())
        self.epoch = functools.lru_cache(maxsize=2)(self._epoch)

    def _epoch(self, epoch: int) -> list[list[int]]:
        chance = random.Random(f"{self.seed} {epoch}")
        batches: list[list[int]] = []
        for bucket in self.buckets.values():
            indices = chance.sample(bucket, len(bucket))
            for start in range(0, len(indices), self.size):
                batches.append([indices[(start + i) % len(indices)] for i in range(self.size)])
        chance.shuffle(batches)
        return batches

    def __getitem__(self, step: int) -> list[int]:
        """Sample indices of the global batch of a step."""
        return self.epoch(step // self.per_epoch)[step % self.per_epoch]


def remarks(order: Order) -> list[str]:
    """What a user should know of an order before training starts: one sentence for each thing, none if all is well."""
    small = [(shape, len(bucket)) for shape, bucket in order.buckets.items() if len(bucket) < order.size]
    if not small:
        return []
    named = ", ".join(f"{count} of {shape}" for shape, count in small[:MOST_NAMED])
    more = f" and {len(small) - MOST_NAMED} shapes more" if len(small) > MOST_NAMED else ""
    return [
        f"A global batch has {order.size} samples of one shape, and there are fewer of some shapes ({named}{more}): "
        "these are repeated within a batch and weigh more; a smaller batch, or more samples of these shapes, avoids it."
    ]
