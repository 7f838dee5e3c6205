"""Fixtures of the tests of CLEAR in diffusers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from clear_core import weights
from clear_core.weights import ClearFile
from tests.support.loading import FLUX_SIZES, KINDS
from tests.support.trained_files import save_random


@pytest.fixture
def flux() -> Any:
    """The tiny FLUX of the golden vectors, base weights."""
    from tests.support.diffusers_flux import tiny_flux  # Here, because a conftest cannot skip where diffusers is not.

    return tiny_flux()


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def saved(tmp_path) -> Callable[..., ClearFile]:
    """``saved(kind, d=1, family="FLUX.1", sizes=...)`` is a file of random weights."""

    def save(kind: str, d: int = 1, family: str = "FLUX.1", sizes: tuple[int, int, int] = FLUX_SIZES) -> ClearFile:
        out = tmp_path / f"{family}_{kind}_{d}.safetensors"
        out.unlink(missing_ok=True)
        return save_random(weights, out, family, kind, sizes, d)

    return save
