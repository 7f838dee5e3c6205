"""A stand-in for the hub on this machine: the same answers, and the faults that a test asks for."""

from __future__ import annotations

import hashlib
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

NAME = "clear_local_8.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Answers like huggingface.co: the hub's own address redirects to a storage host, which knows ranges.

    Attributes:
        content: The file's bytes as they are sent.
        announced: The hub's headers: size, ETag, revision.
        status: HTTP status of the hub's own answers, 302 if all is well.
        cuts: For each of the next transfers: after how many bytes the connection breaks, or None.
        stalls: Whether a transfer stops (and waits for the end) after its first ``cuts`` bytes instead of breaking.
        ignores_range: Whether storage ignores Range and sends the whole file.
        refuses_tokens: From which request of the hub on each token is answered with 401, as huggingface.co does with an
            expired one even for public files; None: never.
        requests: (method, path, Range header, Authorization header).
    """

    def __init__(self, content: bytes) -> None:
        self.ending = Event()
        self.serve(content)
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_GET(self) -> None:
                hub.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def serve(self, content: bytes) -> None:
        """Begins anew with this content and no faults."""
        self.content = content
        etag = hashlib.sha256(content).hexdigest()
        self.announced = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{etag}"', "X-Repo-Commit": COMMIT}
        self.status, self.body, self.extra = 302, b"", {}
        self.cuts: list[int | None] = []
        self.stalls = self.ignores_range = False
        self.refuses_tokens: int | None = None
        self.requests: list[tuple[str, str, str | None, str | None]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def transfers(self) -> list[str | None]:
        """Range header of each request to storage."""
        return [ranges for method, path, ranges, _ in self.requests if method == "GET" and path.startswith("/storage/")]

    def close(self) -> None:
        self.ending.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        self.requests.append((to.command, to.path, to.headers["Range"], to.headers["Authorization"]))
        if to.path.startswith("/storage/"):
            return self.send_content(to)
        known = [f"/Huage001/CLEAR/resolve/{revision}/{NAME}" for revision in ("main", COMMIT)]
        status = self.status if to.path in known else 404
        headers = {**self.extra, "Content-Length": str(len(self.body))}
        asked = sum(path in known for _, path, *_ in self.requests) - 1
        if to.headers["Authorization"] and self.refuses_tokens is not None and asked >= self.refuses_tokens:
            status = 401
            headers["X-Error-Message"] = "Invalid credentials in Authorization header"
        if status == 302:
            # Another host than the hub's, as in the real world: no token may reach it.
            headers |= {**self.announced, "Location": f"http://localhost:{self.port}/storage/{NAME}"}
        self.send(to, status, headers, self.body)

    def send_content(self, to: BaseHTTPRequestHandler) -> None:
        start = 0
        if to.headers["Range"] and not self.ignores_range:
            start = int(to.headers["Range"].removeprefix("bytes=").rstrip("-"))
        if start >= len(self.content):
            return self.send(to, 416, {"Content-Length": "0", "Content-Range": f"bytes */{len(self.content)}"}, b"")
        data, cut = self.content[start:], self.cuts.pop(0) if self.cuts else None
        headers = {"Content-Length": str(len(data)), "ETag": '"storage"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(self.content) - 1}/{len(self.content)}"
        self.send(to, 206 if start else 200, headers, data[:cut])
        if cut is not None:
            if self.stalls:
                self.ending.wait(60)
            to.close_connection = True
            to.connection.shutdown(socket.SHUT_RDWR)

    def send(self, to: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
        try:
            to.send_response(status)
            for key, value in headers.items():
                to.send_header(key, value)
            to.end_headers()
            if to.command == "GET":
                to.wfile.write(body)
                to.wfile.flush()
        except OSError:
            to.close_connection = True  # the client was killed
