"""Tensors that are made once: a file keeps them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clear_core.distill.disk import no_half_file
from clear_core.inspection.locality.kept import Kept


def begin(folder: Path, identity: dict[str, Any]) -> None:
    """Claims a folder for everything that has this identity, ready for JSON.

    Raises:
        ValueError: The folder holds tensors of something else.
    """
    Kept(folder, identity)


def kept(file: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What a file holds; if there is none, what ``make`` returns, which is written first."""
    if not file.exists():
        with torch.inference_mode():
            made = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        with no_half_file(file) as part:
            save_file({name: tensor.contiguous() for name, tensor in made.items()}, part)
    return load_file(file)
