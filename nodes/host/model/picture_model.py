"""What CLEARUpscale has to know of a model that makes pictures: of any family, with windows or without.

Source: ``latent_format``, ``unet_config`` and ``diffusion_model`` of ``comfy.model_base.BaseModel``;
``latent_channels``, ``latent_dimensions`` and ``spacial_downscale_ratio`` (later hosts) of
``comfy.latent_formats.LatentFormat``; ``comfy.sd.VAE.spacial_compression_encode``; ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from comfy.model_patcher import ModelPatcher

from ....clear_core.frame_units import FrameUnits
from ....clear_core.picture_kinds import PICTURE_KINDS, PictureKind
from .family import HostFamily, config_of, host_family, host_name
from .table_positions import is_formula, table_side

Placing = Literal["embedder", "options", "table"]
"""How the positions of a tile's tokens are moved: the ids that the embedder gets;
``transformer_options["rope_options"]``; or the model's table of positions."""

PLACING: dict[str, Placing] = {
    "flux": "embedder",
    "chroma": "embedder",
    "chroma_radiance": "embedder",
    "flux2": "embedder",
    "krea2": "embedder",
    "qwen_image": "embedder",
    "hidream": "embedder",
    "hunyuan_image": "embedder",
    "lumina2": "options",
    "kandinsky5": "options",
    "wan2.1": "options",
    "wan2.2_5b": "options",
    "sd3": "table",
}
"""By the names in :data:`PICTURE_KINDS`. The tiles of other models have the positions that the model gives them."""

NO_PICTURES = ("ltxav", "minimax_h3", "hunyuan3d", "trellis", "triposplat", "RT_DETR", "DepthAnything", "SAM")
"""Beginnings of an ``image_model`` that makes sound beside its picture, or no picture."""

WAN22_CHANNELS = 48
UNET_LEVELS = {4: "sd1", 3: "sdxl"}


@dataclass(frozen=True)
class PictureModel:
    """One model that makes pictures.

    Attributes:
        name: As people know it, with what the host calls it where it is no known kind.
        kind: Its name in :data:`PICTURE_KINDS`; None if it is none of them.
        units: How its frame is made.
        channels: Of its latents.
        host: Its parts in the host if CLEAR's windows reach it, else None.
        takes_references: Whether it attends to reference latents.
    """

    name: str
    kind: str | None
    units: FrameUnits
    channels: int
    host: HostFamily | None
    takes_references: bool

    @property
    def placing(self) -> Placing | None:
        """How a tile's positions are moved; None if the model's own stay."""
        return PLACING.get(self.kind or "")

    @property
    def least_text(self) -> int:
        """Text tokens that a shorter prompt is padded to."""
        return PICTURE_KINDS[self.kind].least_text if self.kind else 0


def picture_model(model: ModelPatcher, vae: Any = None) -> PictureModel:
    """Read a model.

    Args:
        vae: Says how many pixels a latent cell has where the model is of no known kind.

    Raises:
        ValueError: It makes no pictures.
    """
    config, space = config_of(model), model.get_model_object("latent_format")
    dimensions, name = getattr(space, "latent_dimensions", 2), host_name(model)
    if dimensions not in (2, 3) or "audio_model" in config or str(config.get("image_model")).startswith(NO_PICTURES):
        raise ValueError(f"the model is {name}, which does not make pictures alone; connect one that does.")
    kind = kind_of(model)
    known = PICTURE_KINDS.get(kind or "", PictureKind(name, FrameUnits(cell_pixels(space, vae), 2)))
    try:
        host = host_family(model)
    except ValueError:
        host = None
    return PictureModel(
        name=host.family.name if host else known.name,
        kind=kind,
        units=replace(read_units(model, known.units), has_frames=dimensions == 3),
        channels=space.latent_channels,
        host=host,
        takes_references=host.family.takes_references if host else says_references(model),
    )


def kind_of(model: ModelPatcher) -> str | None:
    """The name of a model's kind, by what the host says of it."""
    config, inner = config_of(model), model.model.diffusion_model
    name = config.get("image_model")
    if name == "hunyuan_video":
        patch = config.get("patch_size", ())
        return "hunyuan_image" if list(patch) == [1, 1] else None
    if name == "wan2.1" and model.get_model_object("latent_format").latent_channels == WAN22_CHANNELS:
        return "wan2.2_5b"
    if name is not None:
        return name if name in PICTURE_KINDS else None
    if hasattr(inner, "joint_blocks"):
        return "sd3"
    return UNET_LEVELS.get(levels_of(model))


def levels_of(model: ModelPatcher) -> int:
    """Levels of a UNet of the host, between which it halves the latent; 0 for another model."""
    return len(config_of(model).get("channel_mult", ())) if hasattr(model.model.diffusion_model, "input_blocks") else 0


def read_units(model: ModelPatcher, known: FrameUnits) -> FrameUnits:
    """The units with what the model itself says: its patch size, the levels of an unknown UNet, its longest side."""
    inner = model.model.diffusion_model
    if hasattr(inner, "input_blocks"):
        if known.unit_tokens > 1 or levels_of(model) < 2:
            return known
        return replace(known, token_cells=1, unit_tokens=2 ** (levels_of(model) - 1))
    patch = patch_of(model)
    units = known if patch is None else replace(known, token_cells=patch)
    side = table_side(inner)
    return units if side is None else replace(units, most_units=side, may_be_longer=is_formula(inner))


def patch_of(model: ModelPatcher) -> int | None:
    """Side of a token in latent cells as a transformer states it."""
    inner = model.model.diffusion_model
    for name in ("patch_size", "patch_spatial", "patch"):
        for found in (getattr(inner, name, None), config_of(model).get(name)):
            side = found[-1] if isinstance(found, (list, tuple)) and found else found
            if isinstance(side, int) and side > 0:
                return side
    return None


def cell_pixels(space: Any, vae: Any) -> int:
    """Side of a latent cell in pixels: what the VAE says, else the model's latent format."""
    compression = getattr(vae, "spacial_compression_encode", None)
    return int(compression() if compression else getattr(space, "spacial_downscale_ratio", 8))


def says_references(model: ModelPatcher) -> bool:
    """Whether the host counts reference latents in the memory that the model takes."""
    return "ref_latents" in getattr(model.model, "memory_usage_factor_conds", ())
