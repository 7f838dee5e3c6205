"""The tiny FLUX's stand-in for T5 and CLIP: fixed random vectors for the words of the world.

A word's vector holds the word itself and, with less weight, the words between the same two commas, which a language
model would bind to it ("red" and "ball"). Nothing is trained, so nothing is stored.
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
# Weight of a phrase's other words; the word's own is 1.
NEIGHBOUR = 0.5


@functools.cache
def word_vectors() -> dict[str, Tensor]:
    """(2 * 128 + 64,) elements by word: as itself, as a neighbour, and pooled."""
    words = vocabulary()
    generator = torch.Generator().manual_seed(SEED)
    table = torch.randn(len(words), 2 * CONTEXT + POOLED, generator=generator)
    return dict(zip(words, table, strict=True))


@functools.cache
def phrase_vectors() -> Tensor:
    """(TOKENS + 1, 128): one for the index of each phrase, and the last one for padding."""
    return torch.randn(TOKENS + 1, CONTEXT, generator=torch.Generator().manual_seed(SEED + 1))


def phrases(caption: str) -> list[list[str]]:
    """The known words of a caption by phrase; other words are ignored."""
    known = word_vectors()
    split = (re.findall(r"[a-z]+", part) for part in caption.lower().split(","))
    return [found for words in split if (found := [word for word in words if word in known])]


def encode_captions(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Text inputs of the tiny FLUX.

    Args:
        captions: Texts in the world's words; "" is the unconditional one. Words past the 24th known are dropped.

    Returns:
        (B, 24, 128) context and (B, 64) pooled vector, float32.
    """
    known, by_phrase = word_vectors(), phrase_vectors()
    context = by_phrase[TOKENS].repeat(len(captions), TOKENS, 1)
    pooled = torch.zeros(len(captions), POOLED)
    for row, caption in enumerate(captions):
        position = 0
        for index, words in enumerate(phrases(caption)):
            around = sum(known[word][CONTEXT : 2 * CONTEXT] for word in words)
            for word in words[: TOKENS - position]:
                vector = known[word]
                own, neighbour = vector[:CONTEXT], vector[CONTEXT : 2 * CONTEXT]
                context[row, position] = own + NEIGHBOUR * (around - neighbour) + NEIGHBOUR * by_phrase[index]
                pooled[row] += vector[2 * CONTEXT :]
                position += 1
            if position == TOKENS:
                break
        pooled[row] /= max(position, 1) ** 0.5
    return context, pooled
