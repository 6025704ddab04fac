"""Which requests the web server answers at all, and what a browser may load: nothing from anywhere else."""

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from pix2seq_hf.app.limits import Limits

# What gradio has and this page does not need: fetching addresses for visitors, statistics, recordings, its own tools.
CLOSED = re.compile(
    r"/(proxy=|file=\s*https?:|file=\s*//|run-history|runs/?$|monitoring|process_recording|vibe-|mcp|deep_link|dev/)",
    re.IGNORECASE,
)
MAX_BODY = 1_000_000  # bytes of a request that is no upload
HEADERS = {
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src "
    "'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'",
    "x-content-type-options": "nosniff",
}


def names_address(content: Any) -> bool:
    """Whether a request names a file that is an address in a network, which gradio would fetch."""
    if isinstance(content, Mapping):
        path = content.get("path")
        if isinstance(path, str) and re.match(r"\s*[a-z][a-z0-9+.-]*:", path, re.IGNORECASE) and path[1:2] != ":":
            return True
        return any(names_address(value) for value in content.values())
    return isinstance(content, list) and any(names_address(value) for value in content)


class Guard:
    r"""ASGI middleware: refuses what is closed or too large, with one line of JSON, and adds [`HEADERS`].

    Args:
        app: The application behind it.
        limits ([`Limits`]): How large uploads may be."""

    def __init__(self, app: Any, limits: Limits):
        self.app, self.limits = app, limits

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                own = {name.encode(): value.encode() for name, value in HEADERS.items()}
                others = [(name, value) for name, value in message.get("headers", []) if name.lower() not in own]
                message = {**message, "headers": [*others, *own.items()]}
            await send(message)

        path = unquote(scope["path"])
        problem = (404, "this page does not have that") if CLOSED.search(path) else None
        if problem is None and scope["method"] not in ("GET", "HEAD"):
            problem = self._length_problem(path, scope["headers"])
            if problem is None and not _is_upload(path):
                receive, problem = await _checked_body(receive)
        if problem is None:
            await self.app(scope, receive, send_with_headers)
            return
        status, message = problem
        body = json.dumps({"detail": message}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send_with_headers({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _length_problem(self, path: str, headers: list[tuple[bytes, bytes]]) -> tuple[int, str] | None:
        """What is wrong with the length that a request states."""
        if not _is_upload(path):
            return None
        length = dict(headers).get(b"content-length", b"")
        if not length.isdigit():
            return 411, "say how long the upload is (Content-Length)"
        if int(length) > self.limits.max_bytes * self.limits.max_files + MAX_BODY:
            return 413, f"the upload is too large: {self.limits.max_files} pictures, {self.limits}"
        return None


def _is_upload(path: str) -> bool:
    return path.rstrip("/").endswith("/upload")


async def _checked_body(receive) -> tuple[Any, tuple[int, str] | None]:
    """Read a request's body; return a `receive` that gives it once more, and what is wrong with it."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":  # the visitor has gone
            break
        body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > MAX_BODY:
            return receive, (413, f"the request is longer than {MAX_BODY:,} bytes")
    is_read = False

    async def receive_again():
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    try:
        content = json.loads(body) if body else None
    except (ValueError, RecursionError):
        content = None  # what is no JSON gradio refuses itself
    if names_address(content):
        return receive_again, (400, "addresses are not fetched: upload the file")
    return receive_again, None
