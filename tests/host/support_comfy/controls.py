"""A ControlNet that hands its hint on place by place, so that tiles must get what the whole frame gets."""

from __future__ import annotations

from typing import Any

import comfy.utils
import torch
import torch.nn.functional as F
from comfy.controlnet import ControlBase

from .flux import TINY


class PointwiseControl(ControlBase):
    """Adds to each image token the mean of its 16 x 16 pixels of the hint, along a fixed direction.

    As with the host's own ControlNets, the hint is resized to 8 pixels a latent and a mask (``extra_concat``) to one.
    """

    def get_control(self, x: torch.Tensor, t: torch.Tensor, cond: Any, batched_number: int, options: Any) -> Any:
        height, width = x.shape[-2:]
        hint = comfy.utils.common_upscale(
            self.cond_hint_original, 8 * width, 8 * height, self.upscale_algorithm, "center"
        )
        tokens = F.avg_pool2d(hint.mean(1, keepdim=True), 16)
        for mask in self.extra_concat_orig:
            mask = comfy.utils.common_upscale(mask, width, height, self.upscale_algorithm, "center")
            tokens = tokens * F.avg_pool2d(mask.float(), 2)
        direction = torch.randn(TINY["hidden_size"], generator=torch.Generator().manual_seed(8))
        residual = self.strength * tokens.flatten(1)[..., None] * direction
        residual = comfy.utils.repeat_to_batch_size(residual, x.shape[0]).to(x.dtype)
        return {"input": [], "output": [residual]}

    def copy(self) -> PointwiseControl:
        made = PointwiseControl()
        self.copy_to(made)
        return made
