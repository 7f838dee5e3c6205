"""A stand-in for the registry: one pack, this checkout's, as archives of what was and what would be published."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings it
    import tomli as tomllib

from tests.support import PROJECT
from tools.archive import archive, shipped

REAL = "https://api.comfy.org"
"""The registry that the front end and the Manager ask by themselves."""


def pack_id() -> tuple[str, str]:
    """Name and version of this checkout's pack."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["name"], project["version"]


def entry(pack: str, version: str) -> dict[str, Any]:
    """The registry's entry of a pack."""
    return {
        "id": pack,
        "name": "CLEAR for FLUX",
        "description": "Windows.",
        "author": "",
        "category": "",
        "downloads": 0,
        "rating": 0,
        "github_stars": 0,
        "icon": "",
        "banner_url": "",
        "repository": "",
        "license": "",
        "tags": [],
        "status": "NodeStatusActive",
        "publisher": {"id": "clear", "name": "clear"},
        "latest_version": {
            "id": "1",
            "version": version,
            "status": "NodeVersionStatusActive",
            "changelog": "",
            "deprecated": False,
            "supported_os": [],
            "supported_accelerators": [],
            "dependencies": [],
        },
    }


class Registry:
    """A registry that has one pack, this one, and a Manager's channel that has none.

    Attributes:
        url: Where it answers.
        pack: Its entry of the pack, with the newest version.
        archives: Versions that were published here, with their archives; the checkout's own needs no entry.
        asked: Requested paths.
    """

    def __init__(self) -> None:
        self.pack = entry(*pack_id())
        self.archives: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.url = ""

    def publish(self, version: str, packed: bytes) -> None:
        """Serves a version from now on, as the newest."""
        self.archives[version] = packed
        self.pack["latest_version"]["version"] = version

    def version(self, number: str) -> dict[str, Any]:
        """The registry's entry of a version."""
        return self.pack["latest_version"] | {"version": number, "downloadUrl": f"{self.url}/archives/{number}"}

    def answer(self, path: str) -> Any:
        """The JSON of an address, or the archive's bytes; None where there is nothing."""
        self.asked.append(path)
        address = urlsplit(path)
        route, query = address.path, parse_qs(address.query)
        newest = self.pack["latest_version"]["version"]
        if route.startswith("/archives/"):
            return self.archives.get(route.rpartition("/")[2]) or archive(PROJECT, shipped(PROJECT))
        if "/comfy-nodes/" in route or route == f"/nodes/{self.pack['id']}":  # a node's name was looked up, or a pack
            return self.pack
        if route == f"/nodes/{self.pack['id']}/install":
            return self.version(query.get("version", [newest])[0])
        if route == f"/nodes/{self.pack['id']}/versions":
            return [self.version(number) for number in {**self.archives, newest: b""}]
        if route.startswith("/channel/"):  # lists of packs and models outside the registry
            return {"custom_nodes": [], "models": [], "items": []}
        if "bulk" in route:
            return {"node_versions": []}
        if re.fullmatch(r"/nodes(/search)?", route):
            wanted = query.get("node_id", []) + query.get("node_id[]", [])
            found = [self.pack] if not wanted or self.pack["id"] in wanted else []
            return {"nodes": found, "total": len(found), "page": 1, "limit": 10, "totalPages": 1}
        return None

    def fulfil(self, route: Any) -> None:
        """Answers in a browser in the real one's place: a handler for Playwright's ``page.route``."""
        address = urlsplit(route.request.url)
        answer = self.answer(f"{address.path}?{address.query}")
        route.fulfill(
            status=404 if answer is None else 200,
            json=answer,
            headers={"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Headers": "*"},
        )

    @contextmanager
    def served(self) -> Iterator[Registry]:
        """Answers over HTTP on this machine until the block is left."""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                found = registry.answer(self.path)
                body = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
