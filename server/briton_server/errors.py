"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`, a status, retry hints."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from briton.errors import (
    BritonError,
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    Unavailable,
    wire_status_of,
)
from briton_server.body import ACCEPTED_ENCODING, BodyEncoded, BodyTooLarge, BodyTooSlow

_STATUS: dict[type, int] = {BodyTooLarge: 413, BodyTooSlow: 408, BodyEncoded: 415}  # what HTTP alone knows

logger = logging.getLogger(__name__)


def error_body(error: BaseException) -> dict[str, Any]:
    """The body for any error. What is not a BritonError is a bug and stays in the log."""
    if not isinstance(error, BritonError):
        return _body("internal error: the server's log has the details", wire_status_of(error).openai_type, None, None)
    code: str | None = None
    if isinstance(error, InvalidRequest):
        code = error.code
    elif isinstance(error, ModelNotFound):
        code = "model_not_found"
    return _body(error.message, wire_status_of(error).openai_type, getattr(error, "field", None), code)


def error_event(error: BaseException) -> bytes:
    """An error as the data of a server-sent event."""
    return b"data: " + json.dumps(error_body(error), separators=(",", ":")).encode() + b"\n\n"


def error_response(error: BaseException) -> Response:
    """The response for any error: the table's status, and Retry-After where coming back makes sense."""
    status = _STATUS.get(type(error)) or wire_status_of(error).http_status
    headers: dict[str, str] = {}
    if isinstance(error, QueueFull | Unavailable):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
    elif isinstance(error, BodyEncoded):
        headers["accept-encoding"] = ACCEPTED_ENCODING  # RFC 9110, 12.5.3
    elif isinstance(error, DeadlineExceeded):
        headers["x-should-retry"] = "false"  # the client would wait as long again
    return JSONResponse(error_body(error), status, headers)


def log_unless_told(error: BaseException, request_id: str) -> None:
    """Log what is a bug; what is the caller's is told to the caller."""
    if not isinstance(error, BritonError):
        logger.error("request %s failed", request_id, exc_info=error)


def install_error_handlers(app: FastAPI) -> None:
    """Give every error of an application this shape, those of routing included."""

    async def on_briton_error(request: Request, error: Exception) -> Response:
        return error_response(error)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}"
        kind = "invalid_request_error" if error.status_code < 500 else "server_error"
        return JSONResponse(_body(message, kind, None, None), error.status_code, error.headers)

    app.add_exception_handler(BritonError, on_briton_error)
    app.add_exception_handler(HTTPException, on_http_error)


def _body(message: str, kind: str, param: str | None, code: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
