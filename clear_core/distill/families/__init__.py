"""How each family is taught, in one table. Add a family here and nowhere else."""

from __future__ import annotations

from typing import Any

from ...integrations.diffusers_model import family_of
from .base import Teaching, Text
from .flux1 import CHROMA_TEACHING, FLUX1_TEACHING
from .flux2 import FLUX2_TEACHING
from .qwen import QWEN_TEACHING
from .sd3 import SD3_TEACHING

__all__ = ["TEACHINGS", "Teaching", "Text", "teaching_of"]

TEACHINGS = (FLUX1_TEACHING, CHROMA_TEACHING, FLUX2_TEACHING, QWEN_TEACHING, SD3_TEACHING)


def teaching_of(transformer: Any) -> Teaching:
    """How a diffusers model is taught.

    Raises:
        ImportError: diffusers is not installed.
        TypeError: It is not a transformer of a family with windows.
    """
    family = family_of(transformer)
    return next(teaching for teaching in TEACHINGS if teaching.family is family)
