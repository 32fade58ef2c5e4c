"""Serves the page at `/` as plain files, with headers that let it load from and call only this server."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter, Response

FOLDER = Path(__file__).parent / "web"
START = "index.html"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob:",  # blob: is for the pictures that the user chooses
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {sources}" for name, sources in POLICY.items()),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
FILES = {("/" if path.name == START else f"/page/{path.name}"): path for path in sorted(FOLDER.iterdir())}


def router() -> APIRouter:
    """Makes one route for each file. No part of a request is used as a path."""
    routes = APIRouter(include_in_schema=False)
    for route, path in FILES.items():
        routes.add_api_route(route, sender(path.read_bytes(), TYPES[path.suffix]))
    return routes


def sender(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    """Makes the endpoint of one file."""

    async def send() -> Response:
        return Response(content, headers=HEADERS, media_type=media_type)

    return send
