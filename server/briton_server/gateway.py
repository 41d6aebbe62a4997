"""Gateway: what one running gateway holds. Routers take it from the application; nothing of it is global."""

from __future__ import annotations

import asyncio
import contextlib
import time

import anyio.to_thread
from starlette.requests import Request

from briton.errors import ModelNotFound
from briton_server.engine_client import EngineClient
from briton_server.metrics import Metrics
from briton_server.preparation import Preparation
from briton_server.prompts import Prompts
from briton_server.readiness import Readiness
from briton_server.settings import Settings
from briton_server.unknown_fields import UnknownFields


class Gateway:
    """`engine` and `prompts` exist from `start` on."""

    engine: EngineClient
    prompts: Prompts

    def __init__(self, settings: Settings, prompts: Prompts | None = None) -> None:
        self.settings = settings
        self.metrics = Metrics(settings.request_timeout_s)
        self.readiness = Readiness()
        self.preparation = Preparation()
        self.unknown_fields = UnknownFields()
        self.created = int(time.time())
        self._given = prompts
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Load the tokenizer unless it was given, connect, and keep watch over the engine. Raises BuildError."""
        if self._given is not None:
            self.prompts = self._given
        else:
            self.prompts = await anyio.to_thread.run_sync(Prompts.load, self.settings.tokenizer_dir)
        self.engine = EngineClient(self.settings.engine_address)
        self._watch = asyncio.create_task(
            self.readiness.watch(
                self.engine, model_name=self.settings.model_name, tokenizer_hash=self.prompts.tokenizer.hash
            )
        )

    async def stop(self) -> None:
        """End the watch and the connection."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            await self.engine.close()

    @property
    def model_names(self) -> tuple[str, ...]:
        """The served model's name, and those of its LoRA adapters, which the engine tells."""
        info = self.readiness.model_info
        return (self.settings.model_name, *(info.lora_adapters if info is not None else ()))

    def check_model(self, name: str | None) -> str:
        """One of `model_names`; none at all means the served model. Raises ModelNotFound for any other."""
        if not name:
            return self.settings.model_name
        if name not in self.model_names:
            served = ", ".join(map(repr, self.model_names))
            raise ModelNotFound(f"the model {name!r} does not exist: this server serves {served}")
        return name


def gateway_of(request: Request) -> Gateway:
    """The gateway of the application that got this request."""
    gateway: Gateway = request.app.state.gateway
    return gateway
