"""Figures that others published, to stand beside a record and marked as theirs. Nothing here was measured by us."""

from __future__ import annotations

from typing import Any

SOURCE = "published by NATTEN for FLUX.1-dev at 4K, 24 heads, on an H100, permutation included; not measured here"

NATTEN_4K: list[dict[str, Any]] = [
    {"name": "dense, cuDNN", "keys_per_query": 65536, "median_ms": 97.4},
    {"name": "80 x 80 window", "keys_per_query": 6400, "median_ms": 18.6},
    {"name": "80 x 80 window, stride 16 x 16", "keys_per_query": 6400, "median_ms": 10.6},
]
"""A window of 80 x 80 tokens is about eight times CLEAR's of radius 16: compare by the keys of a query."""
