"""Kinds of models that make pictures, with windows or without."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .families import (
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
    WAN22_5B,
    Z_IMAGE,
)
from .frame_units import FrameUnits


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
    "chroma_radiance": PictureKind(CHROMA_RADIANCE.name, CHROMA_RADIANCE.units),
    "flux2": PictureKind(FLUX2.name, FLUX2.units, least_text=512),
    "krea2": PictureKind(KREA2.name, replace(KREA2.units, has_frames=True)),
    "qwen_image": PictureKind(QWEN_IMAGE.name, replace(QWEN_IMAGE.units, has_frames=True)),
    "lumina2": PictureKind("Z-Image or Lumina 2", Z_IMAGE.units),
    "sd3": PictureKind("Stable Diffusion 3", SD3.units),
    "hidream": PictureKind("HiDream", HIDREAM.units),
    "hunyuan_image": PictureKind(HUNYUAN_IMAGE.name, HUNYUAN_IMAGE.units),
    "kandinsky5": PictureKind("Kandinsky 5", replace(KANDINSKY5.units, has_frames=True)),
    "wan2.1": PictureKind(WAN.name, replace(WAN.units, has_frames=True)),
    "wan2.2_5b": PictureKind(WAN22_5B.name, replace(WAN22_5B.units, has_frames=True)),
    # A UNet attends to single cells (SD 1.5) or to 2 x 2 of them (SDXL). SDXL's deepest level is one of 32 px, but it
    # was trained at multiples of 64 px (arXiv 2307.01952, section 2.3).
    "sd1": PictureKind("Stable Diffusion 1 or 2", FrameUnits(8, 1, 8)),
    "sdxl": PictureKind("SDXL", FrameUnits(8, 2, 4)),
}
"""Kinds that are known by name. What the others are made of is read from them in the host."""
