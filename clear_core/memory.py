"""How much memory one call of FLUX takes at its peak, counted in hidden states from the order of the computation.

Calculated, not measured: docs/memory.md says how far the count was checked.
"""

from __future__ import annotations

from dataclasses import dataclass

from .families import FLUX1

GIB = 2**30

CHUNK_TOKENS = 8192
"""Fewest tokens that projections and MLPs work on at a time; sequences of more than twice as many are chunked."""

MOST_CHUNKS = 4
"""More would not lower the peak, which is in the attention; and weights that the host keeps in main memory are brought
to the card once for every chunk."""

FLUX_TEXT = FLUX1.text_tokens
"""Text tokens to plan with: FLUX's default is 256 or 512, long prompts have more."""

# Rotary embedding of one token: 64 frequencies, 2 x 2 float32.
ROTATION_BYTES = 64 * 4 * 4

# Latents of one token in float32, 64 numbers: the sampler's, the guider's and the model's input, eight in all.
LATENT_BYTES = 8 * 64 * 4

# Text encoders are unloaded by then; what remains is the CUDA context, cuBLAS workspaces and fragmentation.
RUNTIME_BYTES = GIB

ENGINE_COPIES = 4
"""Hidden states the attention engine may hold besides its arguments: q, k, v in tile order, and the output."""


@dataclass(frozen=True)
class Activations:
    """Shape of the hidden states of a FLUX.

    Attributes:
        width: Numbers per token (FLUX.1: 3072).
        mlp_ratio: Width of the MLP over the width (4).
        element_size: Bytes of one number while computing: 2 for bf16 and fp16, also where the weights are fp8 or GGUF.
    """

    width: int = FLUX1.width
    mlp_ratio: float = 4.0
    element_size: int = 2

    def hidden_bytes(self, tokens: int, batch: int = 1) -> int:
        """One hidden state: ``tokens`` times the width."""
        return batch * tokens * self.width * self.element_size

    def peak_bytes(
        self, tokens: int, *, batch: int = 1, chunk: int = CHUNK_TOKENS, engine_copies: int = ENGINE_COPIES
    ) -> int:
        """Most bytes alive at once in one call of the model, weights not counted.

        The peak is in a single block, during attention: hidden state, q, k, v, the MLP's inner state and the
        attention's output, with what the engine holds. Without chunks it is where the MLP is activated: both ends of
        that beside the projection that its input is a part of.

        Args:
            tokens: Text, image and reference tokens of the sequence: of a tile where there are tiles.
            batch: Sequences in one call; 2 where cfg is above 1.
            chunk: Fewest tokens that are worked on at a time.
            engine_copies: Hidden states the attention holds besides q, k, v and its output.
        """
        if is_chunked(tokens, chunk):
            kept = 1 + 3 + self.mlp_ratio
            # The widest moment of a chunk: both ends of the activation beside the projection.
            states = max(kept + 1 + engine_copies, kept + (3 + 2 * self.mlp_ratio) * chunk_of(tokens, chunk) / tokens)
        else:
            projection = 3 + self.mlp_ratio
            # Normalised q and k are new; v is a part of the projection, which stays whole as long as the MLP's part.
            states = max(1 + projection + 2 + 1 + engine_copies, 2 + projection + self.mlp_ratio + 1)
        return int(states * self.hidden_bytes(tokens, batch) + batch * tokens * (ROTATION_BYTES + LATENT_BYTES))


def is_chunked(tokens: int, chunk: int = CHUNK_TOKENS) -> bool:
    """Whether a sequence of this length is worked on in chunks of at least ``chunk``."""
    return tokens > 2 * chunk


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
