"""GET /version."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request

import briton
from briton_server.gateway import gateway_of

router = APIRouter(tags=["version"])


class Version(BaseModel):
    """What runs here. The engine's part is null until it has answered."""

    version: str
    engine_version: str | None = None
    executor: str | None = None
    architecture: str | None = None
    weights_dtype: str | None = None
    kv_cache_dtype: str | None = None


@router.get("/version", summary="Versions of gateway and engine")
async def version(request: Request) -> Version:
    """The versions, and how the model is run."""
    info = gateway_of(request).readiness.model_info
    if info is None:
        return Version(version=briton.__version__)
    return Version(
        version=briton.__version__,
        engine_version=info.version,
        executor=info.executor,
        architecture=info.architecture,
        weights_dtype=info.weights_dtype,
        kv_cache_dtype=info.kv_cache_dtype,
    )
