"""Fixture of the tests of CLEAR in diffusers."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def flux() -> Any:
    """The tiny FLUX of the golden vectors, base weights."""
    from tests.support.diffusers_flux import tiny_flux  # Here, because a conftest cannot skip where diffusers is not.

    return tiny_flux()
