"""The one middleware, plain ASGI: request ids, counts and times, and the last net for exceptions."""

from __future__ import annotations

import logging
import re
import time
from uuid import uuid4

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from briton.errors import Unavailable
from briton.v1.current_request import current_request
from briton_server.connection import connection_of
from briton_server.errors import error_response, log_unless_told
from briton_server.gateway import Gateway

_GENERATION_PATHS = ("/v1/chat/completions", "/v1/completions")
_ALWAYS_ANSWERED = ("/live", "/ready")
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_SCOPE_KEY = "briton.request_id"

logger = logging.getLogger(__name__)


def request_id_of(scope: Scope) -> str:
    """The id of the request, which its X-Request-Id headers carry."""
    return str(scope[_SCOPE_KEY])


class RequestMiddleware:
    """Takes over a sane X-Request-Id or makes one, and sends it back; counts; answers 500 for what nobody caught."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app = app
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # answered as GET is; the server leaves the body out
            scope = {**scope, "method": "GET"}
        scope[_SCOPE_KEY] = request_id = _request_id(scope)
        connection = connection_of(scope)
        is_over_limit = connection is not None and connection.is_over_limit
        current_request.set(request_id)  # of this request's own task
        header = (b"x-request-id", request_id.encode())
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                last = ((b"connection", b"close"),) if is_over_limit else ()
                message["headers"] = [*message.get("headers", ()), header, *last]
            await send(message)

        is_generation = scope["path"] in _GENERATION_PATHS and scope["method"] == "POST"
        started = time.monotonic()
        if is_generation:
            self._gateway.readiness.request_opened()
            self._gateway.metrics.open_requests.inc()
        try:
            if is_over_limit and scope["path"] not in _ALWAYS_ANSWERED:
                limit = self._gateway.settings.max_connections
                raise Unavailable(f"the limit of {limit} connections is reached (briton.max_connections)")
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            pass  # in the middle of its body: nobody is left to answer
        except Exception as error:
            log_unless_told(error, request_id)
            if status is None:
                await error_response(error)(scope, receive, send_with_id)
        finally:
            seconds = time.monotonic() - started
            if is_generation:
                self._gateway.readiness.request_closed()
                self._gateway.metrics.open_requests.dec()
                self._gateway.metrics.request_s.observe(seconds)
                logger.info("%s %s %.3f s, request %s", scope["path"], status or 499, seconds, request_id)
            self._gateway.metrics.requests.labels(_endpoint(scope), str(status or 499)).inc()


def _request_id(scope: Scope) -> str:
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if _REQUEST_ID.fullmatch(given) else uuid4().hex


def _endpoint(scope: Scope) -> str:
    """The route's own path, so that made-up paths do not become metrics."""
    return str(getattr(scope.get("route"), "path", "unknown"))
