"""HTTP routes for the front end: the cost line on our nodes, and the name of their pack.

The page only reports what it found in the graph; the figures are counted here, so that page and nodes agree.

Source: ``server.PromptServer.instance.routes``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping
from functools import lru_cache

from aiohttp import web
from server import PromptServer  # pyright: ignore[reportAttributeAccessIssue]  the host's module, not this folder

from ....clear_core.families import FLUX1, ModelShape
from ....clear_core.inspection.cost_line import cost_line
from ....clear_core.settings import ClearSettings
from ....clear_core.weights import ClearFile, bare_name, read_clear_file
from ....clear_core.wording import printable, quoted
from ..pack import pack_id
from .weight_files import NO_WEIGHTS, installed_name, is_released, path_of

COST = "/clear_flux/cost"
PACK = "/clear_flux/pack"

LONGEST_SIDE = 65536
MOST_DIGITS = 20
SHAPE = ModelShape.usual(FLUX1)
"""The model is not known before the graph runs."""


def register_graph_routes() -> None:
    """Add the routes to the running server, if there is one (tests and scripts have none)."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return

    @server.routes.get(COST)
    async def get_cost(request: web.Request) -> web.Response:
        try:
            # In a thread: a weights file may be on a slow disk.
            return web.json_response({"line": await asyncio.to_thread(line_for, request.query)})
        except (ValueError, OSError) as error:  # ClearFileError included; each says what to do
            # Status 200: browsers would log any other in their console at every unfinished graph.
            return web.json_response({"error": str(error)})

    @server.routes.get(PACK)
    async def get_pack(request: web.Request) -> web.Response:
        return web.json_response(pack_id())


def line_for(query: Mapping[str, str]) -> str:
    """The line for what the page found.

    Args:
        query: ``windows`` ("off" if no CLEARAttention precedes the node); ``weights_name``, ``strength``, ``radius``,
            ``down_factor``, ``start_percent``, ``end_percent``, ``dense_blocks`` and ``min_tokens`` as on the node;
            ``width`` and ``height`` in pixels if they are known.

    Raises:
        ValueError: A value is out of range, or the weights cannot be used with it.
    """
    width, height = (parse_int(query, side, 1, LONGEST_SIDE) for side in ("width", "height"))
    size = (width, height) if width and height else None
    if query.get("windows") == "off":
        return cost_line(None, SHAPE, size)
    name = query.get("weights_name", NO_WEIGHTS)
    has_weights = parse_fraction(query, "strength", 1) > 0 and name != NO_WEIGHTS
    return cost_line(settings_of(query, name), SHAPE, size, has_weights=has_weights)


def settings_of(query: Mapping[str, str], weights_name: str) -> ClearSettings:
    """The settings that the node is going to make of its widgets, as far as they change the cost."""
    radius, down_factor = (parse_int(query, name, 0, LONGEST_SIDE) for name in ("radius", "down_factor"))
    return ClearSettings.of_widgets(
        radius,
        down_factor,
        weights_file(weights_name),
        start_percent=parse_fraction(query, "start_percent", 0),
        end_percent=parse_fraction(query, "end_percent", 1),
        dense_blocks=query.get("dense_blocks", ""),
        min_tokens=parse_int(query, "min_tokens", 0, 1 << 24),
    )


def weights_file(name: str) -> ClearFile | None:
    """The weights file of this name; None for "none".

    Raises:
        ValueError: It is not installed; the sentence says where to get it.
    """
    if name == NO_WEIGHTS:
        return None
    if not installed_name(name):
        remedy = (
            "see Get weights on CLEAR Attention" if is_released(name) else "put it into models/clear or choose another"
        )
        raise ValueError(f"{printable(bare_name(name))} is not installed: {remedy}")
    path = path_of(name)
    return read_once(path, os.path.getmtime(path))


@lru_cache(maxsize=8)
def read_once(path: str, changed: float) -> ClearFile:
    """A weights file, read again after a change."""
    return read_clear_file(path)


def parse_int(query: Mapping[str, str], name: str, least: int, most: int) -> int:
    """A whole number of the query; 0 if it is missing.

    Raises:
        ValueError: It is not a whole number in the range.
    """
    text = query.get(name)
    if text is None:
        return 0
    if not text.isdecimal() or len(text) > MOST_DIGITS or not least <= (value := int(text)) <= most:
        raise ValueError(f"{name} is {quoted(text)}; expected a whole number from {least} to {most}.")
    return value


def parse_fraction(query: Mapping[str, str], name: str, default: float) -> float:
    """A fraction of the query, 0 to 1; ``default`` if it is missing.

    Raises:
        ValueError: It is not a number from 0 to 1.
    """
    text = query.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {quoted(text)}; expected a number from 0 to 1.")
    return value
