"""HTTP routes for what the front end writes on our nodes: the line of figures, and which pack they come from.

Source: ``server.PromptServer.instance.routes``. Figures are counted here, so that the page and the nodes cannot
disagree; the page only says what it found in the graph.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping
from functools import lru_cache

from aiohttp import web
from server import PromptServer

from ....clear_core.dense_blocks import parse_dense_blocks
from ....clear_core.inspection.cost_line import cost_line
from ....clear_core.settings import ClearSettings, choose_spec
from ....clear_core.spec import ClearSpec
from ....clear_core.weights import ClearFile, bare_name, read_clear_file
from ..pack import pack_id
from .weight_files import NO_WEIGHTS, installed_name, is_released, path_of

COST = "/clear_flux/cost"
PACK = "/clear_flux/pack"

LONGEST_SIDE = 65536
DOUBLE, SINGLE = 19, 38
"""Blocks of FLUX.1, which a graph that did not run yet cannot tell of its model."""


def register_graph_routes() -> None:
    """Add the routes to the running server; without one (tests, scripts) there is nothing to do."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return

    @server.routes.get(COST)
    async def get_cost(request: web.Request) -> web.Response:
        try:
            # In a thread: a weights file may lie on a slow disk.
            return web.json_response({"line": await asyncio.to_thread(line_for, request.query)})
        except (ValueError, OSError) as error:  # among them ClearFileError; each says what to do
            # No error status: browsers would write one into their console at every unfinished graph.
            return web.json_response({"error": str(error)})

    @server.routes.get(PACK)
    async def get_pack(request: web.Request) -> web.Response:
        return web.json_response(pack_id())


def line_for(asked: Mapping[str, str]) -> str:
    """The line for what the page found.

    Args:
        asked: ``windows`` ("off" where no CLEARAttention precedes the node); ``weights_name``, ``strength``,
            ``radius``, ``down_factor``, ``start_percent``, ``end_percent``, ``dense_blocks`` and ``min_tokens`` as on
            the node; ``width`` and ``height`` in pixels where they are known.

    Raises:
        ValueError: A value is out of range, or the weights cannot be used as asked.
    """
    size = (number(asked, "width", 1, LONGEST_SIDE), number(asked, "height", 1, LONGEST_SIDE))
    known = size if all(size) else None
    if asked.get("windows") == "off":
        return cost_line(None, known)
    name = asked.get("weights_name", NO_WEIGHTS)
    spec = spec_for(name, number(asked, "radius", 0, LONGEST_SIDE), number(asked, "down_factor", 0, LONGEST_SIDE))
    has_weights = part(asked, "strength", 1) > 0 and name != NO_WEIGHTS
    settings = ClearSettings(
        spec, start_percent=part(asked, "start_percent", 0), end_percent=part(asked, "end_percent", 1)
    )
    dense = parse_dense_blocks(asked.get("dense_blocks", ""), DOUBLE, SINGLE)
    return cost_line(
        spec,
        known,
        has_weights=has_weights,
        min_tokens=number(asked, "min_tokens", 0, 1 << 24),
        dense_part=len(dense) / (DOUBLE + SINGLE),
        acts=(settings.start_percent, settings.end_percent),
    )


def spec_for(name: str, radius: int, down_factor: int) -> ClearSpec:
    """The windows that the node is going to use."""
    if name == NO_WEIGHTS:
        return choose_spec(radius, down_factor, None)
    if not installed_name(name):
        remedy = (
            "see Get weights on CLEAR Attention" if is_released(name) else "put it into models/clear or choose another"
        )
        raise ValueError(f"{bare_name(name)} is not installed: {remedy}")
    path = path_of(name)
    return choose_spec(radius, down_factor, read_once(path, os.path.getmtime(path)))


@lru_cache(maxsize=8)
def read_once(path: str, changed: float) -> ClearFile:
    """A weights file; read again after it changed."""
    return read_clear_file(path)


def number(asked: Mapping[str, str], name: str, least: int, most: int) -> int:
    """A whole number of the request; 0 where it is not named.

    Raises:
        ValueError: It is no such number, or out of range.
    """
    text = asked.get(name)
    if text is None:
        return 0
    if not text.isdecimal() or not least <= (value := int(text)) <= most:
        raise ValueError(f"{name} is {text[:20]!r}; expected a whole number from {least} to {most}.")
    return value


def part(asked: Mapping[str, str], name: str, default: float) -> float:
    """A share of the request, 0 to 1; ``default`` where it is not named.

    Raises:
        ValueError: It is no such number.
    """
    text = asked.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {text[:20]!r}; expected a number from 0 to 1.")
    return value
