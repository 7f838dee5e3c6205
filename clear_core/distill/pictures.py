"""A picture file as a person sees it: whole, upright, on white, in sRGB with 8 bits."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

from ..layout import TOKEN_PIXELS
from ..wording import printable

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

FORMATS = ("PNG", "JPEG", "WEBP")
"""Formats that are opened, whatever the suffix says."""

DEEP_MOST = 65535
GREY_STEP = {2: 85, 4: 17}
"""What Pillow multiplies the tones of a PNG with so many bits by."""


class PictureError(ValueError):
    """A picture cannot be used; the text goes on after the file's name: "is cut off"."""


def read_picture(content: bytes) -> Image:
    """A picture as a person sees it.

    It is turned as its EXIF says; what is transparent becomes white; 16-bit tones keep their range; colours go through
    the ICC profile of the file, if it has one, to sRGB.

    Args:
        content: All bytes of a PNG, JPEG or WebP file.

    Returns:
        A picture of mode "RGB".

    Raises:
        PictureError: It is damaged, too small, too large for Pillow, or animated.
    """
    from PIL import Image, UnidentifiedImageError

    if not content:
        raise PictureError("is empty")
    with warnings.catch_warnings():
        # Between its limit and twice its limit Pillow only warns.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            return _opened(content)
        except PictureError:
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            raise PictureError(f"has more pixels than Pillow's limit of {Image.MAX_IMAGE_PIXELS:,}") from None
        except UnidentifiedImageError:
            raise PictureError("is not a PNG, JPEG or WebP picture") from None
        except Exception as error:  # Decoders meet damaged files with errors of many kinds.
            raise PictureError(f"cannot be decoded ({printable(error, 120) or type(error).__name__})") from None


def _opened(content: bytes) -> Image:
    from PIL import Image, ImageOps

    image = Image.open(io.BytesIO(content), formats=FORMATS)
    # MPO is the JPEG of telephones: what comes after the picture belongs to it, such as its depth or another exposure.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        raise PictureError(f"is animated ({getattr(image, 'n_frames', 0)} frames)")
    if min(image.size) < TOKEN_PIXELS:
        raise PictureError(f"is {image.width} x {image.height} px, expected at least {TOKEN_PIXELS} px a side")
    profile = image.info.get("icc_profile")
    image.load()
    if image.format == "PNG":
        _scale_transparent_tone(image, bits=content[24])
    image = ImageOps.exif_transpose(image)
    alpha = None
    if image.mode.startswith("I"):
        image, alpha = _from_16_bits(image)
    elif image.has_transparency_data:
        grey = image.mode in ("L", "LA", "1")
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.getchannel("R") if grey else image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "CMYK"):
        image = image.convert("RGB")
    image = _in_srgb(image, profile)
    return image if alpha is None else Image.composite(image, Image.new("RGB", image.size, "white"), alpha)


def _scale_transparent_tone(image: Image, bits: int) -> None:
    """Brings the tone that a PNG calls transparent to the scale of the decoded tones; Pillow leaves it as it is."""
    tone = image.info.get("transparency")
    if isinstance(tone, int) and image.mode == "L":
        image.info["transparency"] = tone * GREY_STEP.get(bits, 1)
    elif isinstance(tone, tuple) and bits == 16:
        image.info["transparency"] = tuple(each >> 8 for each in tone)


def _from_16_bits(image: Image) -> tuple[Image, Image | None]:
    """A grey picture of 0 to 65535 with 8 bits, and its opacity if a tone of it is transparent.

    Pillow's own conversion cuts all above 255 off.
    """
    import numpy as np
    from PIL import Image

    tones = np.asarray(image).astype(np.int64)
    tone = image.info.get("transparency")
    alpha = None if tone is None else Image.fromarray(np.where(tones == tone, 0, 255).astype(np.uint8))
    return Image.fromarray(((tones * 255 + DEEP_MOST // 2) // DEEP_MOST).astype(np.uint8)), alpha


def _in_srgb(image: Image, profile: bytes | None) -> Image:
    """An RGB picture from one of mode L, RGB or CMYK: through its profile if that is for such pictures, else Pillow's
    own conversion."""
    from PIL import ImageCms

    if profile:
        try:
            source: Any = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            # Programs leave an RGB profile on what they made grey; it says nothing about it then.
            if source.profile.xcolor_space.strip() == {"L": "GRAY"}.get(image.mode, image.mode):
                target = ImageCms.createProfile("sRGB")
                converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
                assert converted is not None  # It is only in place.
                return converted
        except (OSError, ImageCms.PyCMSError) as error:
            raise PictureError(f"has a colour profile that cannot be used ({printable(error, 80)})") from None
    return image.convert("RGB")
