"""GET /metrics."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from briton_server.gateway import gateway_of

_STATS_TIMEOUT_S = 1.0

router = APIRouter(tags=["metrics"])


@router.get("/metrics", summary="Metrics in Prometheus' text format", response_class=Response)
async def metrics(request: Request) -> Response:
    """The gateway's metrics and, while it answers, the engine's."""
    gateway = gateway_of(request)
    stats = await gateway.engine.stats(timeout=_STATS_TIMEOUT_S)
    return Response(gateway.metrics.exposition(stats), media_type=CONTENT_TYPE_LATEST)
