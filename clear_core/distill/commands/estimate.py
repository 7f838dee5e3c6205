"""``train --estimate``: the memory that a training takes, before anything is loaded."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from .load import transformer_builder
from .settings import config_of

GB = 10**9


def run_estimate(options: argparse.Namespace) -> None:
    """Prints the memory of one process for the settings of the command line."""
    import torch

    from ..estimate import estimate
    from ..outputs import check_forms

    logging.getLogger("diffusers").setLevel(logging.ERROR)  # It warns of a cast that "meta" does not mind.
    config = config_of(options, 1)
    check_forms(options.form or (), config.rank)
    build, family = transformer_builder(options)
    height, width = options.size
    text = family.text_tokens if options.text_tokens is None else options.text_tokens
    found = estimate(
        build,
        config,
        size=(height, width),
        text_tokens=text,
        dtype=getattr(torch, options.dtype),
        checkpointing=options.checkpointing,
        offload=options.offload,
    )
    what = f"rank {config.rank}" if config.rank else "whole weights"
    print(
        f"Estimate for {Path(options.model).name} ({family.name}), {what}, base {config.base}, {config.optimizer}, "
        f"{height} x {width} px, {text} text tokens, batch {config.batch}: {found.peak / GB:.1f} GB on the card at the "
        f"peak of a step (frozen weights {found.base / GB:.1f}, trained {found.trained / GB:.1f})"
        + (f", {found.host / GB:.1f} GB of offloaded weights in the CPU's memory" if found.host else "")
        + (". What pooling adds is not in it" if config.spec.pools else "")
        + ". The card's own share of about 0.5 to 1 GB, and what fragments, come on top."
    )
