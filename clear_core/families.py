"""Model families: what is true of FLUX.1 and of each relative, in one table. Add a family here and nowhere else."""

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


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of models with the same blocks. What has a default is what holds where nothing is known.

    Attributes:
        name: As people know it.
        token_pixels: Side of a token in pixels.
        token_cells: Side of a token in latent cells (the model's patch size).
        order: Order of the tokens in a sequence as it is attended to; a library may keep them in another.
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
        weights: Family whose distilled weights fit; None if nobody has distilled any.
        num_double, num_single, width, head_dim: Blocks, hidden size and head size of the usual model. Double blocks are
            those with a stream each for text and image.
        diffusers: Names in diffusers.
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
    diffusers: DiffusersNames

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


FLUX1 = Family(
    name="FLUX.1",
    token_pixels=16,
    token_cells=2,
    order=("text", "image", "reference"),
    takes_references=True,
    text_tokens=512,
    native_tokens=64 * 64,
    scale_base=64 * 64 + 512,
    hires_tokens=8192,
    hires_ntk=10.0,
    shift=3.0,
    hires_shift=6.0,
    weights="FLUX.1",
    num_double=19,
    num_single=38,
    width=3072,
    head_dim=128,
    diffusers=DiffusersNames(
        transformer="FluxTransformer2DModel",
        processors=(
            "FluxAttnProcessor",
            "FluxAttnProcessor2_0",
            "FusedFluxAttnProcessor2_0",
            "FluxAttnProcessor2_0_NPU",
            "FusedFluxAttnProcessor2_0_NPU",
        ),
        embedder="FluxPosEmbed",
        context_parallel=True,
    ),
)
"""FLUX.1 dev, schnell, Krea, Kontext, Fill, Canny, Depth and their fine-tunes."""

CHROMA = Family(
    name="Chroma",
    token_pixels=16,
    token_cells=2,
    order=("text", "image"),
    takes_references=False,
    text_tokens=512,
    native_tokens=64 * 64,
    scale_base=64 * 64 + 512,
    hires_tokens=8192,
    hires_ntk=10.0,
    num_double=19,
    num_single=38,
    width=3072,
    head_dim=128,
    diffusers=DiffusersNames(
        transformer="ChromaTransformer2DModel",
        processors=("FluxAttnProcessor", "FluxAttnProcessor2_0"),
        embedder="FluxPosEmbed",
        text_mask="attention_mask",
    ),
)
"""Chroma shares FLUX.1's blocks and, as it grew from FLUX.1 schnell, its sizes and recipe."""

FLUX2 = Family(
    name="FLUX.2",
    token_pixels=16,
    token_cells=1,
    order=("text", "image", "reference"),
    takes_references=True,
    text_tokens=512,
    native_tokens=64 * 64,
    scale_base=64 * 64 + 512,
    hires_tokens=128 * 128,
    num_double=8,
    num_single=48,
    width=6144,
    head_dim=128,
    diffusers=DiffusersNames(
        transformer="Flux2Transformer2DModel",
        processors=("Flux2AttnProcessor", "Flux2ParallelSelfAttnProcessor"),
        embedder="Flux2PosEmbed",
    ),
)
"""FLUX.2 dev and klein; the usual model is dev. Its authors state pictures of up to 4 megapixels."""

QWEN_IMAGE = Family(
    name="Qwen-Image",
    token_pixels=16,
    token_cells=2,
    order=("text", "image", "reference"),
    takes_references=True,
    text_tokens=512,
    native_tokens=83 * 83,
    scale_base=83 * 83 + 512,
    hires_tokens=8192,
    num_double=60,
    num_single=0,
    width=3072,
    head_dim=128,
    diffusers=DiffusersNames(
        transformer="QwenImageTransformer2DModel",
        processors=("QwenDoubleStreamAttnProcessor2_0",),
        embedder="QwenEmbedRope",
        grid="shapes",
        attention_kwargs="attention_kwargs",
        text_mask="encoder_hidden_states_mask",
    ),
)
"""Qwen-Image and Qwen-Image-Edit. Its authors' square is 1328 x 1328 px."""

SD3 = Family(
    name="SD3.5",
    token_pixels=16,
    token_cells=2,
    order=("text", "image"),
    takes_references=False,
    text_tokens=333,
    native_tokens=64 * 64,
    scale_base=64 * 64 + 333,
    hires_tokens=8192,
    num_double=38,
    num_single=0,
    width=2432,
    head_dim=64,
    diffusers=DiffusersNames(
        transformer="SD3Transformer2DModel",
        processors=("JointAttnProcessor2_0", "FusedJointAttnProcessor2_0"),
        embedder=None,
        grid="latent",
    ),
)
"""Stable Diffusion 3 and 3.5; the usual model is 3.5 Large. Text: 77 tokens of CLIP and 256 of T5."""

FAMILIES = (FLUX1, CHROMA, FLUX2, QWEN_IMAGE, SD3)
"""Families that can have windows."""


@dataclass(frozen=True)
class PictureKind:
    """A kind of model that makes pictures, with windows or without.

    Attributes:
        name: As people know it.
        units: How its frame is made. Whether its latent has an axis of time, and a patch size other than the usual
            one, are read from the model.
        least_text: Text tokens that the model pads a shorter prompt to, where they attend with the image.
    """

    name: str
    units: FrameUnits
    least_text: int = 0


PICTURE_KINDS = {
    "flux": PictureKind(FLUX1.name, FLUX1.units),
    "chroma": PictureKind(CHROMA.name, CHROMA.units),
    "chroma_radiance": PictureKind("Chroma Radiance", FrameUnits(1, 16)),
    "flux2": PictureKind("FLUX.2", FrameUnits(16, 1), least_text=512),
    "krea2": PictureKind("Krea 2", FrameUnits(8, 2, has_frames=True)),
    "qwen_image": PictureKind("Qwen-Image", FrameUnits(8, 2, has_frames=True)),
    "lumina2": PictureKind("Z-Image or Lumina 2", FrameUnits(8, 2)),
    "sd3": PictureKind("Stable Diffusion 3", FrameUnits(8, 2)),
    "hidream": PictureKind("HiDream", FrameUnits(8, 2)),
    "hunyuan_image": PictureKind("HunyuanImage 2.1", FrameUnits(32, 1)),
    "kandinsky5": PictureKind("Kandinsky 5", FrameUnits(8, 2, has_frames=True)),
    "wan2.1": PictureKind("Wan", FrameUnits(8, 2, has_frames=True)),
    "wan2.2_5b": PictureKind("Wan 2.2 5B", FrameUnits(16, 2, has_frames=True)),
    # A UNet attends to single cells (SD 1.5) or to 2 x 2 of them (SDXL). SDXL's deepest level is one of 32 px, but it
    # was trained at multiples of 64 px (arXiv 2307.01952, section 2.3).
    "sd1": PictureKind("Stable Diffusion 1 or 2", FrameUnits(8, 1, 8)),
    "sdxl": PictureKind("SDXL", FrameUnits(8, 2, 4)),
}
"""Kinds that are known by name. What the others are made of is read from them in the host."""


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
        """Whether no distilled weights fit the model, which only has blocks like FLUX.1's."""
        return self.family.weights is None
