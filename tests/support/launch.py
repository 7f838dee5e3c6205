"""What tests need to start several processes."""

from __future__ import annotations

import socket


def free_port() -> str:
    with socket.socket() as open_socket:
        open_socket.bind(("127.0.0.1", 0))
        return str(open_socket.getsockname()[1])
