"""What differs between families when windows are distilled: how a model is called, and how its samples are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...families import Family


@dataclass(frozen=True, eq=False)
class Text:
    """One conditioning of a batch.

    Attributes:
        embeds: (B, T, text width).
        pooled: (B, pooled width); None for families without it.
        mask: (B, T) bool, True for a token that is there; None if all are.
    """

    embeds: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None


Call = Callable[[Any, Tensor, Tensor, Text, float | None], Tensor]
"""(model, noisy latent (B, C, H, W), sigma (B,), text, guidance scale of the input or None) to ``noise - x``."""

Parts = dict[str, Tensor]
"""Text parts of one sample by name, without a batch dimension: ``prompt_embeds``, ``pooled``."""


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """How one family is taught.

    Attributes:
        family: The family.
        pipeline: Its diffusers pipeline, for text encoders and VAE.
        call: One call of the model.
        text_of: (pipeline, caption) to the text parts of a sample.
        latents_of: (pipeline, picture (1, 3, H, W) from -1 to 1, seed) to (C, H, W) float32.
        generate: (pipeline, text parts, (height, width), steps, guidance, seed) to (C, H, W) float32: a picture of the
            model's own.
        picture_of: (VAE, latents (B, C, H, W)) to pictures (B, 3, H, W), 0 to 1.
        widths: Of a transformer's config: width of each part of a sample, by the part's name (see :data:`.PARTS`).
        even: Whether the sides of a latent are even, since a token is 2 x 2 cells.
        guidance: Usual guidance scale, of the model's own input or of two calls.
        two_calls: Whether guidance takes two calls of the model, with text and without (cfg).
        checkpointing: Whether diffusers hands recomputed blocks what they need (not Chroma's).
        masks: Whether the model is told where a shorter text ends. Without, a batch has texts of one length.
    """

    family: Family
    pipeline: str
    call: Call
    text_of: Callable[[Any, str], Parts]
    latents_of: Callable[[Any, Tensor, int], Tensor]
    generate: Callable[..., Tensor]
    picture_of: Callable[[Any, Tensor], Tensor]
    widths: Callable[[Mapping[str, Any]], dict[str, int]]
    even: bool = True
    guidance: float = 3.5
    two_calls: bool = False
    checkpointing: bool = True
    masks: bool = False

    def needs(self, config: Mapping[str, Any], guidance: float) -> dict[str, int]:
        """Width of each part of a sample that a training with this guidance needs, by the part's name.

        Raises:
            ValueError: Guidance by two calls is below 1.
        """
        if self.two_calls and guidance < 1:
            raise ValueError(
                f"guidance is {guidance:g}, and below 1 two calls would teach the flow without the text; set 1 for one "
                f"call with the text, or a scale above it such as {self.family.name}'s usual {self.guidance:g}."
            )
        widths = self.widths(config)
        if self.takes_two_calls(guidance):
            widths |= {
                f"negative_{end}": widths[part]
                for part, end in (("prompt_embeds", "embeds"), ("pooled", "pooled"))
                if part in widths
            }
        return widths

    def takes_two_calls(self, guidance: float) -> bool:
        """Whether guidance at this scale takes two calls of the model."""
        return self.two_calls and guidance != 1

    def scale(self, guidance: float | None) -> float:
        """The guidance scale of a training: what was named, or the family's usual one."""
        return self.guidance if guidance is None else guidance

    def check_recomputes(self) -> None:
        """Refuse to recompute activations where diffusers does not hand recomputed blocks what windows need.

        Raises:
            ValueError: It does not.
        """
        if not self.checkpointing:
            raise ValueError(
                f"{self.family.name} in diffusers hands recomputed blocks no arguments, so windows cannot be trained "
                "with checkpointing or offload; leave both out, or use a smaller base or rank."
            )

    def input_guidance(self, config: Mapping[str, Any], guidance: float) -> float | None:
        """The scale for the model's guidance input; None for a model without one."""
        return guidance if config.get("guidance_embeds") else None

    def ignores_guidance(self, config: Mapping[str, Any]) -> bool:
        """Whether a scale changes nothing: the model has no input for it, and one call."""
        return not self.two_calls and not config.get("guidance_embeds")

    def check_inputs(self, config: Mapping[str, Any]) -> None:
        """Refuse a model that is fed more than a noisy latent, such as FLUX.1 Fill, Depth and Canny.

        Raises:
            ValueError: It takes more channels than it gives.
        """
        taken = config["in_channels"]
        given = config.get("out_channels") or taken
        # Qwen-Image counts what it gives in cells, and what it takes in tokens.
        if given not in (taken, self.widths(config)["latents"]):
            raise ValueError(
                f"the model takes {taken} channels and gives {given}: it is fed a picture or a mask beside the latent, "
                f"which no sample has; train windows for the plain {self.family.name}."
            )


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU: the same numbers on every device."""
    return torch.Generator().manual_seed(seed)


def sampled(pipeline: Any, size: tuple[int, int], steps: int, seed: int, **inputs: Any) -> Any:
    """What a pipeline samples, before its VAE; ``inputs`` are the family's own: texts, and the guidance by its name."""
    return pipeline(
        height=size[0], width=size[1], num_inference_steps=steps, output_type="latent", generator=seeded(seed), **inputs
    ).images


def full(sigma: Tensor, value: float | None) -> Tensor | None:
    """``value`` for every item of a batch; None stays None."""
    return None if value is None else torch.full_like(sigma, value)
