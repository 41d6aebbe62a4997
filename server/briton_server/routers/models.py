"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request

from briton_server.gateway import Gateway, gateway_of
from briton_server.openapi import ERRORS
from briton_server.protocol.models import Model, ModelList

router = APIRouter(tags=["models"])


@router.get("/v1/models", responses=ERRORS, summary="List the served models")
async def list_models(request: Request) -> ModelList:
    """The model of this server, and its LoRA adapters."""
    gateway = gateway_of(request)
    return ModelList(data=[_model(gateway, name) for name in gateway.model_names])


@router.get("/v1/models/{model:path}", responses=ERRORS, summary="Look up a model")
async def retrieve_model(request: Request, model: str) -> Model:
    """A served model; names may hold slashes. 404 for any other."""
    gateway = gateway_of(request)
    return _model(gateway, gateway.check_model(model))


def _model(gateway: Gateway, name: str) -> Model:
    info = gateway.readiness.model_info
    return Model(
        id=name,
        created=gateway.created,
        max_model_len=info.max_seq_len if info is not None else None,
    )
