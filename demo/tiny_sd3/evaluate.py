"""Evaluates a tiny SD3 on held-out scenes: ``python -m demo.tiny_sd3.evaluate``."""

from __future__ import annotations

from ..tiny_flux.evaluate import run
from .train import RECIPE
from .weights import load_tiny_sd3

if __name__ == "__main__":
    run(RECIPE, load_tiny_sd3, (__doc__ or "").partition("\n")[0])
