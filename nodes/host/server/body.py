"""What a request brings, read with a bound before anything is parsed."""

from __future__ import annotations

import json

from aiohttp import web

from ....clear_core.wording import quoted

JSON = "application/json"
"""Forms of other sites cannot send this type; a page of another site asks the server first, and the host says no."""

LONGEST_BODY = 1024
"""Bytes; a request names a file."""

EXPECTED = '{"name": "clear_local_16"}'


async def name_in_body(request: web.Request) -> str:
    """The name in ``{"name": "clear_local_16"}``.

    Raises:
        ValueError: The request brings something else, or too much; one sentence.
    """
    if request.content_type != JSON:
        raise ValueError(f"the request's content type is {quoted(request.content_type)}; expected {JSON}.")
    if (request.charset or "utf-8").lower() not in ("utf-8", "utf8"):
        raise ValueError(f"the request's charset is {quoted(request.charset)}; expected utf-8.")
    body = b""
    while len(body) <= LONGEST_BODY and (part := await request.content.read(LONGEST_BODY + 1 - len(body))):
        body += part
    if len(body) > LONGEST_BODY:
        raise ValueError(f"the request is longer than {LONGEST_BODY} bytes; expected {EXPECTED}.")
    try:
        return str(json.loads(body.decode("utf-8"))["name"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"the request names no file; expected {EXPECTED}.") from None
