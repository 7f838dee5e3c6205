"""Model families: what is true of FLUX.1 and of each relative, in one table. Add a family here and nowhere else."""

from __future__ import annotations

from dataclasses import replace

from .family import NOT_IN_DIFFUSERS, DiffusersNames, Family, ModelShape

__all__ = ["FAMILIES", "IN_DIFFUSERS", "Family", "ModelShape"]

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

CHROMA_RADIANCE = Family(
    name="Chroma Radiance",
    token_pixels=16,
    token_cells=16,
    order=("text", "image"),
    takes_references=False,
    text_tokens=512,
    native_tokens=64 * 64,
    scale_base=64 * 64 + 512,
    hires_tokens=8192,
    num_double=19,
    num_single=38,
    width=3072,
    head_dim=128,
)
"""Chroma without a VAE: its latent is the picture itself."""

KREA2 = Family(
    name="Krea 2",
    token_pixels=16,
    token_cells=2,
    order=("text", "image", "reference"),
    takes_references=True,
    text_tokens=512,
    native_tokens=64 * 64,
    scale_base=64 * 64 + 512,
    hires_tokens=8192,
    num_double=0,
    num_single=28,
    width=6144,
    head_dim=128,
)
"""Krea 2, of single blocks alone."""

Z_IMAGE = Family(
    name="Z-Image",
    token_pixels=16,
    token_cells=2,
    order=("text", "reference", "image"),
    takes_references=True,
    text_tokens=512,
    native_tokens=64 * 64,
    scale_base=64 * 64 + 512,
    hires_tokens=8192,
    num_double=30,
    num_single=0,
    width=3840,
    head_dim=128,
)
"""Z-Image and Z-Image-Turbo. References lie between text and image; both ends are padded to multiples of 32."""

LUMINA2 = replace(
    Z_IMAGE, name="Lumina 2", order=("text", "image"), takes_references=False, num_double=26, width=2304, head_dim=96
)
"""Lumina 2, which Z-Image grew from; nothing is padded."""

HUNYUAN_IMAGE = Family(
    name="HunyuanImage 2.1",
    token_pixels=32,
    token_cells=1,
    order=("text", "image"),
    takes_references=False,
    text_tokens=512,
    native_tokens=64 * 64,
    scale_base=64 * 64 + 512,
    hires_tokens=8192,
    num_double=20,
    num_single=40,
    width=3584,
    head_dim=128,
)
"""HunyuanImage 2.1, whose VAE has a factor of 32: its native 2048 x 2048 px are 64 x 64 tokens."""

KANDINSKY5 = Family(
    name="Kandinsky 5 Image",
    token_pixels=16,
    token_cells=2,
    order=("image",),
    takes_references=False,
    text_tokens=0,
    native_tokens=64 * 64,
    scale_base=64 * 64,
    hires_tokens=8192,
    num_double=50,
    num_single=0,
    width=2560,
    head_dim=128,
)
"""Kandinsky 5 Image Lite. Text comes by cross-attention."""

WAN = Family(
    name="Wan",
    token_pixels=16,
    token_cells=2,
    order=("image",),
    takes_references=False,
    text_tokens=0,
    native_tokens=80 * 45,
    scale_base=80 * 45,
    hires_tokens=8192,
    num_double=40,
    num_single=0,
    width=5120,
    head_dim=128,
)
"""Wan 2.1 and 2.2 (14B) for single pictures; its own frames have 1280 x 720 px. Text comes by cross-attention."""

WAN22_5B = replace(WAN, name="Wan 2.2 5B", token_pixels=32, num_double=30, width=3072)
"""Wan 2.2 5B, whose VAE has a factor of 16."""

HIDREAM = Family(
    name="HiDream-I1",
    token_pixels=16,
    token_cells=2,
    order=("image", "text"),
    takes_references=False,
    text_tokens=384,
    native_tokens=64 * 64,
    scale_base=64 * 64 + 384,
    hires_tokens=8192,
    num_double=16,
    num_single=32,
    width=2560,
    head_dim=128,
)
"""HiDream-I1 (full, dev, fast). Text: 128 tokens each of T5, of Llama and of the block's Llama layer."""

FAMILIES = (
    FLUX1,
    CHROMA,
    FLUX2,
    QWEN_IMAGE,
    SD3,
    CHROMA_RADIANCE,
    KREA2,
    Z_IMAGE,
    LUMINA2,
    HUNYUAN_IMAGE,
    KANDINSKY5,
    WAN,
    WAN22_5B,
    HIDREAM,
)
"""Families that can have windows."""

IN_DIFFUSERS = tuple(family for family in FAMILIES if family.diffusers is not NOT_IN_DIFFUSERS)
"""Those that the diffusers integration works on."""
