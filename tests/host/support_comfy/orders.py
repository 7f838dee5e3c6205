"""Both orders of two nodes that patch a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

ORDERS = pytest.mark.parametrize("order", ["CLEAR first", "CLEAR last"])


def in_order(order: str, model: Any, clear: Callable[[Any], Any], other: Callable[[Any], Any]) -> Any:
    """``model`` after both nodes, CLEAR's first or last."""
    return other(clear(model)) if order == "CLEAR first" else clear(other(model))
