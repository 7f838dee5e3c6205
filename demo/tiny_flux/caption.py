"""The tiny FLUX's stand-in for T5 and CLIP: fixed random vectors for the words of the world.

A word's vector holds the word itself and, more faintly, the words between the same two commas: what a language
model would have bound to it ("red" and "ball"). Nothing is trained, so nothing needs to be stored.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ..world.scene import vocabulary

TOKENS = 24
CONTEXT = 128
POOLED = 64

SEED = 8451
# Weight of a phrase's other words beside the word's own.
NEIGHBOUR = 0.5


@functools.cache
def word_vectors() -> dict[str, Tensor]:
    """(2 * 128 + 64,) numbers for every word: as itself, as a neighbour, and pooled."""
    words = vocabulary()
    generator = torch.Generator().manual_seed(SEED)
    table = torch.randn(len(words), 2 * CONTEXT + POOLED, generator=generator)
    return dict(zip(words, table, strict=True))


@functools.cache
def phrase_vectors() -> Tensor:
    """(TOKENS + 1, 128): one for the number of each phrase, and the last one for padding."""
    return torch.randn(TOKENS + 1, CONTEXT, generator=torch.Generator().manual_seed(SEED + 1))


def phrases(caption: str) -> list[list[str]]:
    """The known words of a caption by phrase; any other word is passed over."""
    known = word_vectors()
    split = (re.findall(r"[a-z]+", part) for part in caption.lower().split(","))
    return [found for words in split if (found := [word for word in words if word in known])]


def encode_captions(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What the tiny FLUX reads.

    Args:
        captions: Texts in the world's words; "" is the unconditional one. Words past the 24th known are dropped.

    Returns:
        (B, 24, 128) context and (B, 64) pooled vector, float32.
    """
    known, numbers = word_vectors(), phrase_vectors()
    context = numbers[TOKENS].repeat(len(captions), TOKENS, 1)
    pooled = torch.zeros(len(captions), POOLED)
    for row, caption in enumerate(captions):
        place = 0
        for number, words in enumerate(phrases(caption)):
            around = sum(known[word][CONTEXT : 2 * CONTEXT] for word in words)
            for word in words[: TOKENS - place]:
                vector = known[word]
                own, neighbour = vector[:CONTEXT], vector[CONTEXT : 2 * CONTEXT]
                context[row, place] = own + NEIGHBOUR * (around - neighbour) + NEIGHBOUR * numbers[number]
                pooled[row] += vector[2 * CONTEXT :]
                place += 1
            if place == TOKENS:
                break
        pooled[row] /= max(place, 1) ** 0.5
    return context, pooled
