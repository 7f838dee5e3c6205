"""Names of the trained tensors, in every naming scheme that a file may use. Declared here and nowhere else.

The canonical form is the published one (diffusers names): ``transformer_blocks.N.attn.to_q.weight``,
``single_transformer_blocks.N.attn.to_v.bias`` and so on. A file may also use ComfyUI's (the authors') own names, which
stack q, k and v in one tensor, and a prefix. Which family uses which is in :mod:`.trained_set`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Stream = Literal["double", "single"]

STREAMS: tuple[Stream, ...] = ("double", "single")

# What CLEAR trains in a block (the image stream's in a double block), each with a weight and, in most families, a bias.
TRAINED: dict[Stream, tuple[str, ...]] = {
    "double": ("to_q", "to_k", "to_v", "to_out.0"),
    "single": ("to_q", "to_k", "to_v"),
}
ENDS = ("weight", "bias")

PREFIXES = ("", "diffusion_model.", "transformer.", "model.diffusion_model.")

QKV = ("to_q", "to_k", "to_v")


@dataclass(frozen=True)
class NamingScheme:
    """One way to name the trained tensors.

    Attributes:
        name: "diffusers" or "ComfyUI", for messages.
        blocks: Name of the list of blocks, by stream.
        stored: By stream: name of a stored layer within its block, and the trained parts that it stacks, in row order.
        spatial: Name of ``spatial_weight`` within its block, by stream.
        longer: By stream: the stored layer that, in a whole model, has untrained rows below the trained ones.
    """

    name: str
    blocks: Mapping[Stream, str]
    stored: Mapping[Stream, Mapping[str, tuple[str, ...]]]
    spatial: Mapping[Stream, str]
    longer: Mapping[Stream, str] = field(default_factory=dict[Stream, str])

    def may_be_longer(self, key: str) -> bool:
        """Whether the tensor of a key has untrained rows below the trained ones in a whole model."""
        return any(f".{layer}." in key for layer in self.longer.values())


DIFFUSERS = NamingScheme(
    "diffusers",
    {"double": "transformer_blocks", "single": "single_transformer_blocks"},
    {stream: {f"attn.{part}": (part,) for part in TRAINED[stream]} for stream in STREAMS},
    dict.fromkeys(STREAMS, "attn.processor.spatial_weight"),
)

FLUX2_DIFFUSERS = replace(
    DIFFUSERS,
    stored={**DIFFUSERS.stored, "single": {**DIFFUSERS.stored["single"], "attn.to_qkv_mlp_proj": QKV}},
    longer={"single": "attn.to_qkv_mlp_proj"},
)
"""diffusers' FLUX.2 fuses the projections of a single block with those of its MLP. Our files name q, k and v apart."""

# A full ``linear1`` stacks the MLP's rows under q, k and v; CLEAR never trains those. ComfyUI itself has no
# spatial weight, so its name is our choice: the published ending, on the block's attention.
COMFYUI = NamingScheme(
    "ComfyUI",
    {"double": "double_blocks", "single": "single_blocks"},
    {"double": {"img_attn.qkv": QKV, "img_attn.proj": ("to_out.0",)}, "single": {"linear1": QKV}},
    {"double": "img_attn.processor.spatial_weight", "single": "processor.spatial_weight"},
    {"single": "linear1"},
)

SD3_COMFYUI = NamingScheme(
    "ComfyUI",
    {"double": "joint_blocks"},
    {"double": {"x_block.attn.qkv": QKV, "x_block.attn.proj": ("to_out.0",)}},
    {"double": "x_block.attn.processor.spatial_weight"},
)
"""The second attention of SD3.5 Medium (``attn2``) is not trained."""


def trained_name(stream: Stream, index: int, part: str, end: str) -> str:
    """Canonical name of one trained tensor, e.g. ``transformer_blocks.3.attn.to_out.0.bias``."""
    return f"{DIFFUSERS.blocks[stream]}.{index}.attn.{part}.{end}"


def spatial_name(stream: Stream, index: int) -> str:
    """Canonical name of a block's ``spatial_weight``."""
    return f"{DIFFUSERS.blocks[stream]}.{index}.{DIFFUSERS.spatial[stream]}"


def trained_names(num_double: int, num_single: int, bias: bool = True) -> Iterator[str]:
    """Canonical names of all trained tensors of a model, block by block, without the spatial weights.

    Args:
        bias: Whether the family's trained layers have biases (see ``TrainedSet``).
    """
    for stream, count in zip(STREAMS, (num_double, num_single), strict=True):
        for index in range(count):
            for part in TRAINED[stream]:
                for end in ENDS if bias else ENDS[:1]:
                    yield trained_name(stream, index, part, end)
