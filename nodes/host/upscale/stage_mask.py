"""The mask of one stage: what of the picture is new, and which tiles need not be sampled for it.

Source: ``comfy.utils.reshape_mask``; ``comfy.samplers.KSamplerX0Inpaint``, which takes the old latent where the mask
is 0; the functions in ``model_options`` and ``comfy.patcher_extension.WrappersMP`` that see a prediction before it
does; in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

from dataclasses import dataclass

import comfy.utils
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ....clear_core.guidance import GuideSettings, coarse
from ....clear_core.sdedit import Stage, TileLayout, reflect_to
from ..parallel.others import is_known

WHOLE_FRAME_OPTIONS = (
    "denoise_mask_function",
    "sampler_calc_cond_batch_function",
    "sampler_cfg_function",
    "sampler_post_cfg_function",
    "sampler_pre_cfg_function",
)
WHOLE_FRAME_WRAPPERS = (WrappersMP.CALC_COND_BATCH, WrappersMP.PREDICT_NOISE)


@dataclass(frozen=True)
class StageMask:
    """A mask at the size of a stage.

    Attributes:
        pixels: (B, H, W, 1) of the stage's picture; B may be 1.
        latents: (B, 1, h, w) or (B, 1, 1, h, w) of its padded frame, as the host's samplers take it.
    """

    pixels: Tensor
    latents: Tensor

    @classmethod
    def of(cls, mask: Tensor | None, stage: Stage) -> StageMask | None:
        """A mask (B, h, w) of any size for a stage; None if there is none."""
        if mask is None:
            return None
        mask = mask[:, None]
        if mask.shape[-2:] != stage.size:
            mask = F.interpolate(mask, size=stage.size, mode="bilinear")
        pixels = mask.movedim(1, -1)
        padded = reflect_to(pixels, stage.padded).movedim(-1, 1)
        shape = stage.units.latent_shape(stage.grid, 1, mask.shape[0])
        if stage.units.has_frames:
            padded = padded.unsqueeze(2)  # Without it, the host takes the masks of a batch for frames.
        return cls(pixels, comfy.utils.reshape_mask(padded, shape))

    @property
    def is_empty(self) -> bool:
        """Whether the stage only enlarges."""
        return not self.pixels.any()

    def needed(self, tiles: TileLayout, model: ModelPatcher, guide: GuideSettings | None = None) -> TileLayout:
        """The tiles without those whose prediction nobody sees.

        Args:
            guide: Of the stage. It takes means over blocks, so that a block with a masked cell is needed as a whole.
        """
        if shows_whole_frame(model):
            return tiles
        return tiles.needed_for(self.latents if guide is None else coarse(self.latents, guide.level))


def shows_whole_frame(model: ModelPatcher) -> bool:
    """Whether another node computes with a prediction before the mask is applied: a statistic of the whole frame
    would change with tiles that are left out."""
    return any(model.model_options.get(name) for name in WHOLE_FRAME_OPTIONS) or any(
        not is_known(wrapper) for kind in WHOLE_FRAME_WRAPPERS for wrapper in model.get_all_wrappers(kind)
    )
