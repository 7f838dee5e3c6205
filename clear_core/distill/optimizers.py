"""The optimizers of a distillation, each from its library."""

from __future__ import annotations

import torch
from torch import nn

from .config import TrainConfig

WEIGHT_DECAY = 1e-4
"""As in the reference training."""


def new_optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of a distillation.

    Raises:
        ImportError: Its package is not installed.
    """
    if config.optimizer == "prodigy":
        try:
            from prodigyopt import Prodigy
        except ImportError as error:
            raise ImportError("optimizer prodigy needs the package prodigyopt; install it with pip.") from error
        return Prodigy(
            parameters,
            lr=config.full_rate,
            decouple=True,
            use_bias_correction=True,
            safeguard_warmup=True,
            weight_decay=WEIGHT_DECAY,  # pyright: ignore[reportArgumentType]  # prodigyopt annotates it as an integer
        )
    if config.optimizer == "adamw8bit":
        try:
            from bitsandbytes.optim.adamw import AdamW8bit
        except ImportError as error:
            raise ImportError("optimizer adamw8bit needs the package bitsandbytes; install it with pip.") from error
        return AdamW8bit(parameters, lr=config.full_rate, weight_decay=WEIGHT_DECAY)
    return torch.optim.AdamW(parameters, lr=config.full_rate, weight_decay=WEIGHT_DECAY)
