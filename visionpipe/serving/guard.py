"""Handles what all routes share: request ids, the token, metrics, and an answer after any error."""

import hmac
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable

import orjson
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from visionpipe.serving import page
from visionpipe.serving.bodies import Refusal
from visionpipe.serving.service import Service

# Routes that need no token: the health checks, and the page, which holds no secret and asks for the token.
OPEN = {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", *page.FILES}
CODES = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed"}
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

log = logging.getLogger("visionpipe")


async def answer_failure(request: Request, failure: Exception) -> Response:
    """Makes the answer `{code, reason, request_id}` to a request that failed."""
    headers: dict[str, str] = {}
    if isinstance(failure, Refusal):
        status, code, reason, headers = failure.status, failure.code, failure.reason, failure.headers
    elif isinstance(failure, HTTPException):
        status, reason, headers = failure.status_code, failure.detail, dict(failure.headers or {})
        code = CODES.get(status, "error")
    elif isinstance(failure, RequestValidationError):
        status, code, first = 400, CODES[400], failure.errors()[0]
        reason = f"{first['loc'][-1]}: {first['msg']}"
    else:
        status, code, reason = 500, "internal", "an internal error: the server's log has the details"
    return failure_response(request.scope["request_id"], status, code, reason, headers)


def failure_response(
    request_id: str, status: int, code: str, reason: str, headers: dict[str, str] | None = None
) -> Response:
    """Makes the answer to a failed request."""
    content = orjson.dumps({"code": code, "reason": reason, "request_id": request_id})
    return Response(content, status, headers, media_type="application/json")


class Direct:
    """Calls the endpoint of one POST route directly, because FastAPI's routing takes half of a request's time.

    The route itself remains in FastAPI, for the OpenAPI document.
    """

    def __init__(self, app: ASGIApp, route: APIRoute):
        self.app, self.route = app, route
        self.endpoint: Callable[[Request], Awaitable[Response]] = route.endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") != self.route.path or scope.get("method") != "POST":
            return await self.app(scope, receive, send)
        scope["route"], request = self.route, Request(scope, receive)
        try:
            response = await self.endpoint(request)
        except ClientDisconnect:
            raise
        except Exception as failure:
            await (await answer_failure(request, failure))(scope, receive, send)
            if not isinstance(failure, Refusal):
                raise
        else:
            await response(scope, receive, send)


class Guard:
    """Wraps the application: adds request ids, checks the token, and counts requests."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.service = app, service
        self.tokens = spellings(service.settings.token) if service.settings.token else []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)  # lifespan events
        start, headers = time.perf_counter(), dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope["request_id"] = request_id
        if scope["method"] == "HEAD":  # uvicorn has the original scope, and omits the body
            scope = {**scope, "method": "GET"}
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
                if self.service.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            if self.allowed(scope["path"], headers.get(b"authorization", b"")):
                await self.app(scope, receive, send_with_id)
            else:
                response = failure_response(
                    request_id,
                    401,
                    "unauthorized",
                    "this server requires a bearer token",
                    {"WWW-Authenticate": "Bearer"},
                )
                await response(scope, receive, send_with_id)
        except ClientDisconnect:
            status = 499  # the client has disconnected, so no answer is sent
        except Exception:
            log.exception("request %s failed", request_id)  # `answer_failure` has answered already
        route = getattr(scope.get("route"), "path", "other")
        self.service.metrics.requests.labels(route, status).inc()
        self.service.metrics.seconds.labels(route).observe(time.perf_counter() - start)

    def allowed(self, path: str, given: bytes) -> bool:
        """Whether a request may pass. Compares in constant time, so that timing reveals nothing about the token."""
        if not self.tokens or path in OPEN:
            return True
        scheme, _, token = given.partition(b" ")
        right = [hmac.compare_digest(token.strip(), one) for one in self.tokens]
        return scheme.lower() == b"bearer" and any(right)


def spellings(token: str) -> list[bytes]:
    """Returns the bytes that a header may have for the token, in UTF-8 or, as browsers send it, in Latin-1."""
    latin = all(ord(letter) < 256 for letter in token)
    return [token.encode(), token.encode("latin-1")] if latin else [token.encode()]
