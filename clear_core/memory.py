"""What the blocks of a FLUX take at their peak, in hidden states counted from the order of the computation.

Calculated, not measured: docs/memory.md says how far the count was checked. What a whole call takes is in
``call_memory``.
"""

from __future__ import annotations

from dataclasses import dataclass

from .families import FLUX1

GIB = 2**30

CHUNK_TOKENS = 8192
"""Fewest tokens that projections and MLPs work on at a time."""

MOST_CHUNKS = 4
"""More would not lower the peak, which is in the attention; and weights that the host keeps in main memory are brought
to the card once for every chunk."""

FLUX_TEXT = FLUX1.text_tokens
"""Text tokens to plan with: FLUX's default is 256 or 512, long prompts have more."""

# Text encoders are unloaded by then; what remains is the CUDA context, cuBLAS workspaces, fragmentation, and what the
# attention keeps of indices, masks and tables (112 MiB at most).
RUNTIME_BYTES = GIB

ENGINE_COPIES = 4
"""Hidden states that the attention may hold besides its arguments and its result: q, k, v and the result in tile order.
The host's dense attention holds one or two."""


@dataclass(frozen=True)
class Activations:
    """Shape of the hidden states of a transformer, of a FLUX if nothing is said.

    Attributes:
        width: Numbers per token (FLUX.1: 3072).
        mlp_ratio: Width of the MLP over the width (4).
        element_size: Bytes of one number while computing: 2 for bf16 and fp16, also where the weights are fp8 or GGUF.
        text_width: Numbers per text token as the text encoder gives them (T5: 4096).
        gated: Whether the MLP multiplies two inner states (Ovis-Image, FLUX.2).
        single_blocks: Whether it has blocks that project q, k, v and the MLP's inner state at once, the widest ones.
        more: Hidden states that its attention holds besides those of a FLUX's double block, counted in a run on a CPU
            (tests/host/test_memory_kinds.py): q, k, v of text and image by themselves and joined.
    """

    width: int = FLUX1.width
    mlp_ratio: float = 4.0
    element_size: int = 2
    text_width: int = 4096
    gated: bool = False
    single_blocks: bool = True
    more: float = 0.0

    def hidden_bytes(self, tokens: float, batch: int = 1) -> float:
        """One hidden state of so many tokens."""
        return batch * tokens * self.width * self.element_size

    def widest_block_states(self, tokens: int, chunk: int | None, engine_copies: int) -> float:
        """Hidden states of the whole sequence at the peak of the widest block; arguments as below."""
        if self.single_blocks:
            return self.single_block_states(tokens, chunk, engine_copies)
        return self.double_block_states(engine_copies)

    def single_block_states(self, tokens: int, chunk: int | None, engine_copies: int) -> float:
        """Hidden states of the whole sequence at the peak of a single block, which is the widest.

        In chunks, that is during attention: hidden state, q, k, v, the MLP's inner state and the attention's output,
        with what the engine holds. Not in chunks, q and k exist as projected, normalised and rotated. An attention that
        holds little is overtaken by the MLP's activation, both ends of which are there beside the projection.

        Args:
            tokens: Of the sequence.
            chunk: Fewest tokens that are worked on at a time; None for blocks that are never chunked.
            engine_copies: Hidden states the attention holds besides q, k, v and its output.
        """
        if chunk is not None and is_chunked(tokens, chunk):
            kept = 1 + 3 + self.mlp_ratio
            # The widest moment of a chunk: both ends of the activation beside the projection.
            return max(kept + 1 + engine_copies, kept + (3 + 2 * self.mlp_ratio) * chunk_of(tokens, chunk) / tokens)
        ends = 2 if self.gated else 1
        projection = 3 + ends * self.mlp_ratio
        # The projection stays whole as long as v or the MLP's part of it is in use.
        return max(1 + projection + 4 + 1 + engine_copies, 1 + projection + ends * self.mlp_ratio + 1)

    def double_block_states(self, engine_copies: int) -> float:
        """The same for a block that computes its attention and its MLP one after the other, not in chunks."""
        # A gated MLP has both inner states, the activation of one of them, and their product.
        ends = 4 if self.gated else 2
        return max(1 + 3 + 2 + 1 + engine_copies + self.more, 1 + 1 + 1 + ends * self.mlp_ratio)


def is_chunked(tokens: int, chunk: int = CHUNK_TOKENS) -> bool:
    """Whether a sequence of this length is worked on in chunks of at least ``chunk``: if it is two chunks and a bit.

    The bit leaves room for the text of a picture of 2048 x 2048, which would be the commonest one to run in three parts
    for a few hundred tokens more than two.
    """
    return tokens > 2 * chunk + chunk // 8


def chunk_of(tokens: int, least: int = CHUNK_TOKENS) -> int:
    """Tokens that are worked on at a time in a sequence that is chunked."""
    return max(least, -(-tokens // MOST_CHUNKS))


def activation_budget(total: int, weights: int) -> int:
    """Bytes that one call may take on a card, by a rule that knows nothing of what is free right now.

    The weights stay on the card as far as they take at most half of it (the host streams the rest); what is left,
    less the runtime's share, is for activations.

    Args:
        total: Memory of the card in bytes.
        weights: Bytes of the model's weights as they are stored.
    """
    return max(total - min(weights, total // 2) - RUNTIME_BYTES, total // 8)
