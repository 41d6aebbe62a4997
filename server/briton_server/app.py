"""The FastAPI application: routers, errors, one middleware, and a gateway that lives as long as it does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import briton
from briton_server.errors import install_error_handlers
from briton_server.gateway import Gateway
from briton_server.middleware import RequestMiddleware
from briton_server.openapi import ApiWithBodies, operation_id
from briton_server.prompts import Prompts
from briton_server.protocol.chat import ChatCompletionRequest
from briton_server.protocol.completions import CompletionRequest
from briton_server.routers import chat, completions, health, metrics, models, version
from briton_server.settings import Settings


def create_app(settings: Settings, prompts: Prompts | None = None) -> FastAPI:
    """An application whose start connects to the engine and waits for nothing. Its Gateway is `app.state.gateway`."""
    gateway = Gateway(settings, prompts)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    app = ApiWithBodies(
        title="Briton", version=briton.__version__, lifespan=lifespan, generate_unique_id_function=operation_id
    )
    app.bodies = (ChatCompletionRequest, CompletionRequest)
    app.state.gateway = gateway
    for module in (chat, completions, models, health, metrics, version):
        app.include_router(module.router)
    install_error_handlers(app)
    app.add_middleware(RequestMiddleware, gateway=gateway)
    return app
