"""Which requests may start something on this machine: those of ComfyUI's own page, and of scripts.

A browser sends a form to any server that it can reach, whatever page it shows, and says so in ``Origin`` alone. The
host compares ``Origin`` with ``Host`` only where ``Host`` is this machine itself, and a stranger's name that leads to
this machine (DNS rebinding) makes both equal. So both are looked at here.

Source: ``server.create_origin_only_middleware`` and ``create_cors_middleware``; ``--enable-cors-header`` and
``--listen`` of ``comfy.cli_args``, in ComfyUI 0.9.0 and later.
"""

from __future__ import annotations

import ipaddress
import platform
from urllib.parse import SplitResult, urlsplit

from aiohttp import web
from comfy.cli_args import args

from ....clear_core.wording import quoted

UNOWNED = ("localhost", "local", "internal", "lan", "home.arpa")
"""Ends of names that nobody can register, so that no stranger's name server answers for them."""

PORTS = {"http": 80, "https": 443}


def refusal(request: web.Request) -> str | None:
    """Why this request may not start anything, in one sentence; None if it may.

    A request without ``Origin`` is a script's: browsers send it with every POST.
    """
    origin = request.headers.get("Origin")
    if origin is None or is_allowed(origin):
        return None
    host = request.headers.get("Host", "")
    page, server = parts(origin), parts(f"//{host}")
    if page is None or server is None or address(page, page.scheme) != address(server, page.scheme):
        return (
            f"the request comes from {quoted(origin)}, not from {quoted(host)}; press Get weights in ComfyUI's own "
            "page, or start ComfyUI with --enable-cors-header and that origin."
        )
    # A browser shows an https page only after the server has proved the name, which a rebound one cannot.
    if page.scheme != "https" and not is_own_name(page.hostname or ""):
        return (
            f"ComfyUI was opened as {quoted(host)}, a name that another site may own; open it by its IP address, or "
            "start it with --enable-cors-header and that origin."
        )
    return None


def is_allowed(origin: str) -> bool:
    """Whether the host was started with this very origin as one that may use it ("*" names none)."""
    return origin.lower() == str(args.enable_cors_header or "").lower().rstrip("/")


def parts(address: str) -> SplitResult | None:
    """An address in parts; None if it is none."""
    try:
        split = urlsplit(address)
        _ = split.port
    except ValueError:
        return None
    return split if split.hostname else None


def address(split: SplitResult, scheme: str) -> tuple[str, int | None]:
    """(name, port), with the port that the scheme implies."""
    return split.hostname or "", split.port or PORTS.get(scheme)


def is_own_name(name: str) -> bool:
    """Whether a name can only mean a machine of this network: an IP address, a name of this machine, a local one."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        pass
    else:
        return True
    own = {platform.node().lower(), *(part.strip().lower() for part in args.listen.split(","))}
    return name in own or "." not in name or name.endswith(tuple(f".{end}" for end in UNOWNED))
