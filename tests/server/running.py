"""The whole path in one process: an HTTP server on a free port, gRPC, an engine over the fake executor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI

from briton_server.app import create_app
from briton_server.gateway import Gateway
from briton_server.http_server import GatewayServer, listen, server_of
from briton_server.settings import Settings

MODEL = "org/fake-model"


@dataclass
class RunningGateway:
    """A gateway that answers at `url`."""

    url: str
    gateway: Gateway
    server: GatewayServer
    http: httpx.AsyncClient

    def openai(self, *, strict: bool = True) -> AsyncOpenAI:
        """The official client, without retries that would hide an error."""
        return AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=20, _strict_response_validation=strict
        )

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """POST JSON, or bytes as they are."""
        content = body if isinstance(body, bytes) else None
        return await self.http.post(path, content=content, json=None if content is not None else body, headers=headers)

    async def ready(self, wanted: bool = True) -> None:
        """Wait until /ready says what is wanted; fail after five seconds."""
        for _ in range(250):
            if ((await self.http.get("/ready")).status_code == 200) is wanted:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"not {'ready' if wanted else 'unready'} in time: {self.gateway.readiness.reason}")


@asynccontextmanager
async def run_gateway(settings: Settings, *, wait_ready: bool = True) -> AsyncIterator[RunningGateway]:
    """Serve until the block ends."""
    app = create_app(settings)
    listener = listen("127.0.0.1", 0)
    server = server_of(app)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        while not server.started:
            await asyncio.sleep(0.005)
            assert not task.done(), "the server did not start"
        async with httpx.AsyncClient(base_url=url, timeout=20) as http:
            running = RunningGateway(url, app.state.gateway, server, http)
            if wait_ready:
                await running.ready()
            yield running
    finally:
        server.should_exit = True
        await task
        listener.close()


def settings_of(tokenizer_dir: Path, address: str, **changes: Any) -> Settings:
    """Settings for tests."""
    return replace(Settings(MODEL, tokenizer_dir, address), **changes)
