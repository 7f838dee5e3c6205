"""The host's names for the parts of each family, and how its models attend. A family's row in the host is here.

Source: ``comfy.ldm`` (the model of each ``image_model``) and ``extra_conds`` of ``comfy.model_base``; ComfyUI 0.9.0 and
later.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ....clear_core.families import (
    CHROMA,
    CHROMA_RADIANCE,
    FLUX1,
    FLUX2,
    HIDREAM,
    HUNYUAN_IMAGE,
    KANDINSKY5,
    KREA2,
    QWEN_IMAGE,
    SD3,
    WAN,
    Z_IMAGE,
    Family,
)
from ....clear_core.layout import token_grid
from .attention_form import AttentionForm, Inputs

Step = Callable[[Any, int], tuple[float, float]]
"""The steps between positions of rows and of columns that a model takes by itself in a picture of so many tokens."""


def unit_step(model: Any, tokens: int) -> tuple[float, float]:
    """One position a token."""
    return 1.0, 1.0


@dataclass(frozen=True)
class EmbedderForm:
    """How a model asks its position embedder.

    Attributes:
        attribute: Of the diffusion model, which holds the embedder.
        row: Axis of an id that counts rows; the next one counts columns.
        centred: Whether positions count from the image's middle: counted in the latent's dtype from the corner, and
            subtracted from in float32 (Qwen-Image).
        moves_itself: Whether the model follows ``rope_options``, so that it moves a tile itself.
        step: Between positions.
    """

    attribute: str = "pe_embedder"
    row: int = 1
    centred: bool = False
    moves_itself: bool = False
    step: Step = unit_step


FLUX_EMBEDDER = EmbedderForm()


@dataclass(frozen=True)
class HostFamily:
    """The host's names for the parts of a family.

    Attributes:
        family: The family.
        blocks: Attributes of the diffusion model that hold the double and the single blocks; "" if it has none.
        sizes: (hidden size, size of a head) of a diffusion model.
        embedder: Its position embedder; None if a table gives positions.
        attention: How it attends.
        references: Keyword of ``apply_model`` that holds reference latents; None if the family takes none.
        calls_post_input: Whether its forward calls ``post_input`` patches, and keeps what they return.
        has_flux_blocks: Whether its memory is that of FLUX.1's blocks.
        can_be_cut: Whether strips of a picture can be computed on several devices.
    """

    family: Family
    blocks: tuple[str, str] = ("double_blocks", "single_blocks")
    sizes: Callable[[Any], tuple[int, int]] = field(default=lambda model: of_heads(model.hidden_size, model.num_heads))
    embedder: EmbedderForm | None = FLUX_EMBEDDER
    attention: AttentionForm = AttentionForm(text_is_given=True)  # noqa: RUF009 - frozen
    references: str | None = None
    calls_post_input: bool = False
    has_flux_blocks: bool = False
    can_be_cut: bool = False

    @property
    def block_lists(self) -> tuple[str, ...]:
        """The attributes of :attr:`blocks` that there are."""
        return tuple(name for name in self.blocks if name)


def of_heads(width: int, heads: int) -> tuple[int, int]:
    """(hidden size, size of a head)."""
    return width, width // heads


def tokens_of(latent: Any, cells: int) -> int:
    """Tokens of a latent (..., H, W) with tokens of ``cells`` latent cells a side."""
    height, width = latent.shape[-2:]
    return math.prod(token_grid(height, width, cells))


def reference_tokens(keyword: str, cells: int) -> Callable[[Any, tuple[int, int], Inputs], int]:
    """Counts the tokens of the reference latents that a call brings by this keyword."""

    def count(model: Any, grid: tuple[int, int], inputs: Inputs) -> int:
        found = inputs.get(keyword)
        latents = found if isinstance(found, (list, tuple)) else [] if found is None else [found]
        return sum(tokens_of(latent, cells) for latent in latents)

    return count


def padding_tokens(model: Any, grid: tuple[int, int], inputs: Inputs) -> int:
    """Tokens that Lumina's model fills the image up with."""
    multiple = getattr(model, "pad_tokens_multiple", None)
    return -math.prod(grid) % multiple if multiple else 0


def wan_references(model: Any, grid: tuple[int, int], inputs: Inputs) -> int:
    """Tokens of the reference picture that Wan puts before the image, if the model has a layer for it."""
    latent = inputs.get("reference_latent")
    return (
        tokens_of(latent, WAN.token_cells) if getattr(model, "ref_conv", None) is not None and latent is not None else 0
    )


def kandinsky_step(model: Any, tokens: int) -> tuple[float, float]:
    """Kandinsky divides positions by its ``rope_scale_factor``; its largest model by 3.16 from a size on."""
    if model.model_dim == 4096 and tokens * KANDINSKY5.token_cells**2 >= 14080:
        return 1 / 3.16, 1 / 3.16
    _, rows, columns = model.rope_scale_factor
    return 1 / rows, 1 / columns


BESIDE = "puts the source picture beside the target, which a window would cut off"
FRAMES = "adds frames, and windows are for single pictures"

FLUX_ROW = HostFamily(
    FLUX1,
    attention=AttentionForm(beside=reference_tokens("ref_latents", FLUX1.token_cells), text_is_given=True),
    references="ref_latents",
    calls_post_input=True,
    has_flux_blocks=True,
    can_be_cut=True,
)

HOST_FAMILIES: Mapping[str, HostFamily] = {
    "flux": FLUX_ROW,
    "chroma": HostFamily(CHROMA, has_flux_blocks=True, can_be_cut=True),
    "chroma_radiance": HostFamily(CHROMA_RADIANCE),
    "flux2": HostFamily(
        FLUX2,
        attention=AttentionForm(beside=reference_tokens("ref_latents", FLUX2.token_cells), text_is_given=True),
        references="ref_latents",
        calls_post_input=True,
        can_be_cut=True,
    ),
    "krea2": HostFamily(
        KREA2,
        blocks=("", "blocks"),
        sizes=lambda model: of_heads(model.first.out_features, model.heads),
        attention=AttentionForm(
            beside=reference_tokens("ref_latents", KREA2.token_cells), text_is_given=True, names="always"
        ),
        references="ref_latents",
        calls_post_input=True,
    ),
    "qwen_image": HostFamily(
        QWEN_IMAGE,
        blocks=("transformer_blocks", ""),
        sizes=lambda model: of_heads(model.inner_dim, model.transformer_blocks[0].num_attention_heads),
        embedder=EmbedderForm(centred=True),
        attention=AttentionForm(beside=reference_tokens("ref_latents", QWEN_IMAGE.token_cells), text_is_given=True),
        references="ref_latents",
        calls_post_input=True,
    ),
    "lumina2": HostFamily(
        Z_IMAGE,
        blocks=("layers", ""),
        sizes=lambda model: of_heads(model.dim, model.n_heads),
        embedder=EmbedderForm("rope_embedder", moves_itself=True),
        attention=AttentionForm(beside=padding_tokens, names="always"),
        references="ref_latents",
    ),
    "sd3": HostFamily(
        SD3,
        blocks=("joint_blocks", ""),
        sizes=lambda model: of_heads(model.hidden_size, model.num_heads),
        embedder=None,
        attention=AttentionForm(names="counted", has_image_calls=True),
    ),
    "hidream": HostFamily(
        HIDREAM,
        blocks=("double_stream_blocks", "single_stream_blocks"),
        sizes=lambda model: of_heads(model.inner_dim, model.num_attention_heads),
        attention=AttentionForm("after", names="counted", cut_apart={"image_cond": f"HiDream-E1 {BESIDE}"}),
    ),
    "hunyuan_video": HostFamily(HUNYUAN_IMAGE, embedder=EmbedderForm(row=0), attention=AttentionForm(names="always")),
    "kandinsky5": HostFamily(
        KANDINSKY5,
        blocks=("visual_transformer_blocks", ""),
        sizes=lambda model: (model.model_dim, model.visual_transformer_blocks[0].self_attention.head_dim),
        embedder=EmbedderForm("rope_embedder_3d", moves_itself=True, step=kandinsky_step),
        attention=AttentionForm("elsewhere", text_is_given=True, names="always", first_of_block=True),
    ),
    "wan2.1": HostFamily(
        WAN,
        blocks=("blocks", ""),
        sizes=lambda model: of_heads(model.dim, model.num_heads),
        embedder=EmbedderForm("rope_embedder", moves_itself=True),
        attention=AttentionForm(
            "elsewhere",
            beside=wan_references,
            names="always",
            first_of_block=True,
            cut_apart={"time_dim_concat": f"this call of Wan {FRAMES}"},
        ),
    ),
}
"""By ``image_model`` in the host's ``unet_config``; Stable Diffusion 3 has none, and is "sd3" here."""

UNREACHABLE = {
    "ernie": "the host does not hand its attention to other nodes",
    "hidream_o1": "it attends in several passes over one long sequence of text and image",
}
"""Why a model of another ``image_model`` cannot have windows, where there is more to say than that it has none."""
