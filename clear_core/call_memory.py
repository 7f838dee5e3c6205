"""How much memory one call of a model takes at its peak, from the sequence that it runs. The one estimate.

The rule for tiles, what the host is told, CLEARUpscale's ``info`` and CLEARInspect all ask a :class:`MemoryPlan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .memory import CHUNK_TOKENS, ENGINE_COPIES, FLUX_TEXT, Activations, activation_budget, is_chunked

ROTATION_BYTES = 64 * 4 * 4
"""Rotary embedding of one token: 64 frequencies, 2 x 2 float32."""

LATENT_BYTES = 8 * 64 * 4
"""Latents of one image token, 64 numbers in float32: the sampler's, guider's and model's input, eight in all."""

REFERENCE_BYTES = 4 * 64 * 4
"""Latents of one reference token: scaled, batched, in tokens, and joined to the image's."""

CONTROL_LATENT_BYTES = 2 * 64 * 4
"""Latents of one image token for a ControlNet: scaled, and in tokens."""

PER_BLOCK = (19, 38)
"""Double and single blocks of the model that a ControlNet's residuals are laid out for by the host."""


@dataclass(frozen=True)
class ControlMemory:
    """A FLUX ControlNet, which runs before the model and leaves a residual of the image's size for each of its blocks.

    Attributes:
        activations: Its hidden states; its blocks are never chunked.
        double, single: Number of its blocks.
        text: Tokens that it puts before the prompt (a Union ControlNet: 1).
        hint: Numbers of the hint per image token (a picture: 768).
        hint_work: Numbers per image token that its encoder holds besides at its widest; 0 without one.
    """

    activations: Activations = field(default_factory=Activations)
    double: int = 0
    single: int = 0
    text: int = 0
    hint: int = 64
    hint_work: int = 0

    def state_bytes(self, image: int) -> float:
        """One residual, or one hidden state of the image."""
        return self.activations.hidden_bytes(image)

    def hint_bytes(self, image: int) -> float:
        """The hint, which is kept from step to step."""
        return image * self.hint * self.activations.element_size

    def run_bytes(self, text: int, image: int, engine_copies: int) -> float:
        """Most bytes while it runs, with the residuals of all blocks but the last.

        Args:
            text: Text tokens of the prompt.
            image: Image tokens.
            engine_copies: As in :meth:`Activations.single_block_states`.
        """
        shape, tokens = self.activations, text + self.text + image
        states = (
            shape.single_block_states(tokens, None, engine_copies)
            if self.single
            else shape.double_block_states(engine_copies)
        )
        words = shape.hidden_bytes(text) + text * shape.text_width * cast_bytes(shape.element_size)
        # The embedded hint stays beside the residuals.
        images = self.double + self.single
        inputs = tokens * ROTATION_BYTES + image * CONTROL_LATENT_BYTES
        blocks = states * shape.hidden_bytes(tokens) + words + images * self.state_bytes(image) + inputs
        return max(blocks, image * self.hint_work * shape.element_size)


@dataclass(frozen=True)
class CallMemory:
    """One call of a model but for the size of its image: what a prompt brings along, and how the blocks run.

    Attributes:
        activations: Hidden states of the model.
        text: Text tokens.
        reference: Reference tokens, which every tile gets whole.
        chunk: Fewest tokens that a block works on at a time; None if some block cannot be chunked.
        keeps_input: Whether the host keeps the image's first hidden state as long as no block is replaced: it does for
            a model that CLEAR observes.
        controls: ControlNets in the order in which they run.
    """

    activations: Activations = field(default_factory=Activations)
    text: int = FLUX_TEXT
    reference: int = 0
    chunk: int | None = CHUNK_TOKENS
    keeps_input: bool = False
    controls: tuple[ControlMemory, ...] = ()

    def peak_bytes(self, image: int, *, batch: int = 1, engine_copies: int = ENGINE_COPIES) -> int:
        """Most bytes alive at once in one call, weights not counted.

        Args:
            image: Image tokens: of a tile if there are tiles.
            batch: Sequences in one call; 2 if cfg is above 1 and the host runs both prompts at once.
            engine_copies: Hidden states the attention holds besides q, k, v and its output.
        """
        prompt = self.activations.text_width * (4 + cast_bytes(self.activations.element_size))
        inputs = image * LATENT_BYTES + self.text * prompt
        before, held = self.control_bytes(image, engine_copies)
        return int(batch * (inputs + max(before, held + self.model_bytes(image, engine_copies))))

    def model_bytes(self, image: int, engine_copies: int) -> float:
        """Most bytes of the model itself, for one sequence."""
        shape, pictures = self.activations, image + self.reference
        tokens = self.text + pictures
        # The host keeps the text of the double blocks beside the joined sequence of the single ones.
        states = shape.widest_block_states(tokens, self.chunk, engine_copies)
        peak = states * shape.hidden_bytes(tokens) + shape.hidden_bytes(self.text)
        if self.keeps_input and not (self.chunk is not None and is_chunked(tokens, self.chunk)):
            peak += shape.hidden_bytes(pictures)
        return peak + tokens * ROTATION_BYTES + self.reference * REFERENCE_BYTES

    def control_bytes(self, image: int, engine_copies: int) -> tuple[float, float]:
        """Most bytes before the model runs, and bytes that stay for it, for one sequence.

        Two ControlNets in a chain are added block by block of the model: from few shared residuals the host makes one
        for every block.
        """
        peak = hints = held = 0.0
        blocks = (0, 0)
        for control in self.controls:
            own, state = (control.double, control.single), control.state_bytes(image)
            hints += control.hint_bytes(image)
            peak = max(peak, hints + held + control.run_bytes(self.text, image, engine_copies))
            added = tuple(
                whole if ours and theirs else 0 for ours, theirs, whole in zip(own, blocks, PER_BLOCK, strict=True)
            )
            peak = max(peak, hints + held + (sum(own) + sum(added)) * state)
            blocks = tuple(sums or ours or theirs for sums, ours, theirs in zip(added, own, blocks, strict=True))
            held = sum(blocks) * state
        return peak, hints + held


class EstimatedCall(Protocol):
    """One call of a model, of which somebody can say what it takes."""

    def peak_bytes(self, image: int, *, batch: int = 1) -> int:
        """Most bytes alive at once for so many image tokens, weights not counted."""
        ...


@dataclass(frozen=True)
class MemoryPlan:
    """The calls of one sampling, of which each runs by itself if memory is short.

    Attributes:
        calls: One for each prompt at least.
        weights: Bytes of the weights as they are stored, the ControlNets' included.
        source: Whose estimate it is if it is not counted here, for people.
    """

    calls: Sequence[EstimatedCall] = (CallMemory(),)
    weights: int = 0
    source: str = ""

    def peak_bytes(self, image: int, batch: int = 1) -> int:
        """Most bytes of the largest call, weights not counted; arguments as in :meth:`CallMemory.peak_bytes`."""
        return max(call.peak_bytes(image, batch=batch) for call in self.calls)

    def budget(self, total: int) -> int:
        """Bytes that a call may take on a card with ``total`` bytes."""
        return activation_budget(total, self.weights)


def cast_bytes(element_size: int) -> int:
    """Bytes of one float32 number's copy in another dtype; a cast to float32 makes none."""
    return 0 if element_size == 4 else element_size
