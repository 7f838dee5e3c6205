"""HTTP routes for the "Get weights" button: list the catalogue, fetch one of its files.

Source: ``server.PromptServer.instance.routes`` and ``send_sync``, ComfyUI 0.9.0 and later. Fetching is a route and no
widget: the value of a widget is saved in shared workflows and would fetch gigabytes on other machines.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import folder_paths
from aiohttp import web
from server import PromptServer  # pyright: ignore[reportAttributeAccessIssue]  # the host's module, not ours

from ....clear_core.weights import CATALOGUE, LICENCE, FetchError, Release, fetch, find_release
from .body import name_in_body
from .origin import refusal
from .weight_files import FOLDER, installed_name

ROUTE = "/clear_flux/weights"
EVENT = "clear_flux.weights"
"""Sent to every open page: {name, done, total} while it runs, then {name, installed} or {name, error}."""

# Progress events per second; chunks arrive faster than that.
REPORTS = 4

_fetching: dict[str, asyncio.Task[None]] = {}
"""Running downloads by name; an event loop itself keeps weak references to its tasks only."""


def register_routes() -> None:
    """Add the routes to the running server, if there is one (there is none in scripts)."""
    server = getattr(PromptServer, "instance", None)
    if server is None:
        return

    @server.routes.get(ROUTE)
    async def list_weights(request: web.Request) -> web.Response:
        return web.json_response(
            {
                "folder": folder_paths.get_folder_paths(FOLDER)[0],
                "licence": LICENCE,
                "files": [describe(release) for release in CATALOGUE.values()],
            }
        )

    @server.routes.post(ROUTE)
    async def get_weights(request: web.Request) -> web.Response:
        if refused := refusal(request):
            return web.json_response({"error": refused}, status=403)
        try:
            release = find_release(await name_in_body(request))
        except ValueError as error:  # ClearFileError included; each is one sentence
            return web.json_response({"error": str(error)}, status=400)
        if release.stem not in _fetching:
            _fetching[release.stem] = asyncio.create_task(fetch_and_report(server, release))
        return web.json_response({"fetching": release.stem}, status=202)


def describe(release: Release) -> dict[str, Any]:
    """One row of the catalogue as the page shows it."""
    return {
        "name": release.stem,
        "file": release.name,
        "radius": release.radius,
        "down_factor": release.down_factor,
        "size": release.size,
        "meant_for": release.meant_for,
        "installed": installed_name(release.name),
        "fetching": release.stem in _fetching,
    }


async def fetch_and_report(server: PromptServer, release: Release) -> None:
    """Fetch one release into models/clear in a thread of its own, with progress events for all open pages."""
    reported = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > 1 / REPORTS or done == total:
            reported = time.monotonic()
            server.send_sync(EVENT, {"name": release.stem, "done": done, "total": total})

    try:
        await asyncio.to_thread(fetch, release.stem, folder_paths.get_folder_paths(FOLDER)[0], progress)
        answer = {"installed": installed_name(release.name)}
    except FetchError as error:
        logging.warning("CLEAR: %s", error)
        answer = {"error": str(error)}
    except Exception as error:
        logging.exception("CLEAR: %s was not fetched.", release.name)
        answer = {"error": f"{release.name} was not fetched: {type(error).__name__}, see the log."}
    finally:
        _fetching.pop(release.stem, None)
    server.send_sync(EVENT, {"name": release.stem, **answer})
