"""GET /live, /ready and /health: for whoever restarts, routes to, or watches this server."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from briton_server.gateway import gateway_of

router = APIRouter(tags=["health"])


@router.get("/live", summary="Does the process answer?")
async def live() -> Response:
    """200, always."""
    return _status(None)


@router.get("/ready", summary="Are requests accepted now?")
async def ready(request: Request) -> Response:
    """503 with the reason while the engine does not serve, and from the moment this server is told to stop."""
    return _status(gateway_of(request).readiness.reason)


@router.get("/health", summary="Does the engine serve?")
async def health(request: Request) -> Response:
    """503 with the reason while the engine does not serve; an engine that makes no step does not."""
    return _status(gateway_of(request).readiness.engine_reason)


def _status(reason: str | None) -> Response:
    if reason is None:
        return JSONResponse({"status": "ok"})
    return JSONResponse({"status": "unavailable", "reason": reason}, 503, {"retry-after": "2"})
