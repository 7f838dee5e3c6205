"""What is said of a family of models, and of one model of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .dense_blocks import BlockId
from .frame_units import FrameUnits

Part = Literal["text", "image", "reference"]


@dataclass(frozen=True, kw_only=True)
class DiffusersNames:
    """How diffusers shows a family: names of classes in ``diffusers.models`` and of what a call of the model brings.

    Attributes:
        transformer: The model.
        processors: Attention processors that compute attention and nothing else; only these may be replaced.
        embedder: The rotary position embedder, whose ``theta`` takes an NTK factor; None if a table gives positions.
        grid: What tells the grid of a call: the "ids" of its tokens, the "shapes" of its pictures, or its "latent".
        attention_kwargs: The argument of a call that reaches the attention processors.
        text_mask: The argument of a call that masks text tokens; None if there is none.
        context_parallel: Whether windows run in diffusers' context parallelism.
    """

    transformer: str
    processors: tuple[str, ...]
    embedder: str | None
    grid: Literal["ids", "shapes", "latent"] = "ids"
    attention_kwargs: str = "joint_attention_kwargs"
    text_mask: str | None = None
    context_parallel: bool = False


NOT_IN_DIFFUSERS = DiffusersNames(transformer="", processors=(), embedder=None)
"""Of a family that CLEAR works on in ComfyUI alone."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models with the same blocks. What has a default is what holds where nothing is known.

    Attributes:
        name: As people know it.
        token_pixels: Side of a token in pixels.
        token_cells: Side of a token in latent cells (the model's patch size).
        order: Order of the tokens in a sequence as it is attended to; a library may keep them in another. Without text
            where the model sees it by cross-attention alone.
        takes_references: Whether the model attends to reference images (FLUX.1 Kontext, Qwen-Image-Edit).
        text_tokens: Text tokens to plan with; a prompt may have more or fewer.
        native_tokens: Image tokens of the size the family was trained at.
        scale_base: Base of the logarithm in proportional attention: tokens of a native sequence, text included.
        hires_tokens: Up to this many image tokens the model needs no high-resolution recipe.
        hires_ntk: Automatic NTK factor above ``hires_tokens``; 1 where the family has no such recipe.
        shift: Recommended shift of the noise levels; None for the model's own.
        hires_shift: Shift of the noise levels for a run from noise above ``hires_tokens`` that I-Max's shift schedule
            guides; None for the model's own. FLUX.1's 6 is I-Max's (arXiv 2410.07536, ``time_shift_2`` in its
            pipeline_flux_imax.py).
        weights: Family whose published distilled weights fit; None if nobody has published any. What users can distill
            for themselves is in :data:`clear_core.weights.TRAINED_SETS`.
        num_double, num_single, width, head_dim: Blocks, hidden size and head size of the usual model. Double blocks are
            those with a stream each for text and image.
        diffusers: Names in diffusers; :data:`NOT_IN_DIFFUSERS` if CLEAR does not work on the family there.
    """

    name: str
    token_pixels: int
    token_cells: int
    order: tuple[Part, ...]
    takes_references: bool
    text_tokens: int
    native_tokens: int
    scale_base: int
    hires_tokens: int
    hires_ntk: float = 1.0
    shift: float | None = None
    hires_shift: float | None = None
    weights: str | None = None
    num_double: int
    num_single: int
    width: int
    head_dim: int
    diffusers: DiffusersNames = NOT_IN_DIFFUSERS

    @property
    def latent_pixels(self) -> int:
        """Side of a latent cell in pixels (the VAE's factor)."""
        return self.token_pixels // self.token_cells

    @property
    def units(self) -> FrameUnits:
        """How a frame is made."""
        return FrameUnits(self.latent_pixels, self.token_cells)

    def shift_for(self, image_tokens: int, guided_from_noise: bool) -> float | None:
        """Shift of the noise levels for one run; None for the model's own.

        Args:
            image_tokens: Of the whole frame.
            guided_from_noise: Whether it starts from pure noise and I-Max's shift schedule guides it.
        """
        return self.hires_shift if guided_from_noise and self.is_hires(image_tokens) else self.shift

    def is_hires(self, image_tokens: int) -> bool:
        """Whether a frame of this many image tokens gets the high-resolution recipe."""
        return image_tokens > self.hires_tokens


@dataclass(frozen=True)
class ModelShape:
    """One model of a family.

    Attributes:
        family: Its family.
        num_double, num_single: Number of double and single blocks.
        width: Hidden size.
        head_dim: Size of a head.
        mlp_ratio: Width of the MLP over the hidden size.
    """

    family: Family
    num_double: int
    num_single: int
    width: int
    head_dim: int
    mlp_ratio: float = 4.0

    @classmethod
    def usual(cls, family: Family) -> ModelShape:
        """The usual model of a family, for figures about a model that is not loaded."""
        return cls(family, family.num_double, family.num_single, family.width, family.head_dim)

    @property
    def blocks(self) -> int:
        """Number of blocks of both kinds."""
        return self.num_double + self.num_single

    @property
    def block_ids(self) -> tuple[BlockId, ...]:
        """All blocks, double ones first."""
        double = (("double", index) for index in range(self.num_double))
        return (*double, *(("single", index) for index in range(self.num_single)))

    @property
    def is_relative(self) -> bool:
        """Whether nobody has published distilled weights for the model, which only has blocks like FLUX.1's."""
        return self.family.weights is None


TRAINING_FREE = "training-free"
"""What windows are called without distilled weights."""

HYBRID = f"{TRAINING_FREE} hybrid"
"""What they are called with an overview of what is outside them."""

HYBRID_WORDS = f"a {HYBRID}, circles and a coarse overview of the rest"


def training_free_words(name: str, overview: bool) -> str:
    """Says of a model's windows, without distilled weights, that they are not trained.

    Args:
        name: Of the family.
        overview: Whether pooled keys stand for what is outside the windows.
    """
    kind = HYBRID_WORDS if overview else TRAINING_FREE
    cost = "some quality" if overview else "quality"
    return f"windows on {name} are {kind}: nobody has published distilled weights for it, so they cost {cost}"
