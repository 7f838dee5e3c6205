"""What a device's own attention does with memory and views, asked of torch and not guessed from the device's name."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

SCORE_BYTES = 10
"""Memory in bytes of one score, where attention keeps scores: float32 twice, and once in q's dtype."""


@lru_cache(maxsize=64)
def is_fused(device: torch.device, dtype: torch.dtype, head_dim: int, masked: bool) -> bool:
    """Whether ``scaled_dot_product_attention`` keeps no scores in memory there.

    Mac, Intel and some AMD and older NVIDIA devices write all of them out.

    Args:
        masked: Whether there is a mask.
    """
    if device.type == "cpu":
        return True
    if device.type != "cuda":
        return False
    q = torch.empty(1, 1, 64, head_dim, device=device, dtype=dtype)
    mask = torch.empty(1, 1, 64, 64, device=device, dtype=dtype) if masked else None
    parameters = torch.backends.cuda.SDPAParams(q, q, q, mask, 0.0, False, False)
    kernels = ("can_use_flash_attention", "can_use_efficient_attention", "can_use_cudnn_attention")
    # torch before 2.6 cannot be asked about cuDNN.
    checks = [getattr(torch.backends.cuda, name) for name in kernels if hasattr(torch.backends.cuda, name)]
    return any(check(parameters, False) for check in checks)


def plain(tensor: Tensor) -> Tensor:
    """The tensor as attention takes it without fault: on a Mac contiguous, elsewhere itself.

    Apple's attention reads views wrongly in torch 2.8 and some later versions (pytorch issues 163597 and 181133).
    """
    return tensor.contiguous() if tensor.device.type == "mps" else tensor
