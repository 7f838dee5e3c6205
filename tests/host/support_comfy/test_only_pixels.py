"""A custom node for test servers only: a VAE whose latents are plain means, so that large pictures cost nothing.

16 channels: red, green and blue over the four quarters of 8 x 8 pixels, and brightness over them again.
"""

import torch
import torch.nn.functional as F


class PlainPixels:
    """What the stock image nodes ask of a VAE: encode and decode."""

    def encode(self, pixels):
        quarters = F.pixel_unshuffle(F.avg_pool2d(pixels.movedim(-1, 1).float(), 4), 2)
        return torch.cat([quarters, quarters.unflatten(1, (3, 4)).mean(1)], dim=1) * 2 - 1

    def decode(self, samples):
        quarters = F.pixel_shuffle((samples[:, :12] + 1) / 2, 2)
        return F.interpolate(quarters, scale_factor=4, mode="bilinear").clamp(0, 1).movedim(1, -1)


class ClearTestPixels:
    RETURN_TYPES = ("VAE",)
    FUNCTION = "make"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        return (PlainPixels(),)


NODE_CLASS_MAPPINGS = {"ClearTestPixels": ClearTestPixels}
