"""Whether requests can be answered now: what the engine says of itself, and whether this server is leaving."""

from __future__ import annotations

import asyncio
import logging

from briton.errors import BritonError, Unavailable
from briton.v1 import engine_pb2
from briton_server.engine_client import EngineClient
from briton_server.engine_errors import EngineFault

_POLL_S = 0.1  # while the engine is not serving
_CHECK_S = 1.0  # while it is
_TIMEOUT_S = 2.0  # an engine that does not answer for so long is hung

logger = logging.getLogger(__name__)

_NOT_ASKED = "the engine has not answered yet"


class Readiness:
    """The one place that knows why a request would be refused. `watch` keeps it true."""

    def __init__(self) -> None:
        self.model_info: engine_pb2.ModelInfo | None = None  # of the engine now serving, or the last that did
        self.engine_reason: str | None = _NOT_ASKED  # None: it serves
        self.draining = False
        self.drain_requested = asyncio.Event()
        self.num_open = 0  # generation requests
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def reason(self) -> str | None:
        """Why no request is accepted; None when all is well."""
        return "the server is shutting down" if self.draining else self.engine_reason

    def require(self) -> engine_pb2.ModelInfo:
        """The engine's limits. Raises Unavailable when no request is accepted now."""
        if self.reason is not None or self.model_info is None:
            raise Unavailable(self.reason or _NOT_ASKED)
        return self.model_info

    def drain(self) -> None:
        """Accept nothing more; open requests go on."""
        self.draining = True
        self.drain_requested.set()

    def request_opened(self) -> None:
        """Count a generation request in."""
        self.num_open += 1
        self._idle.clear()

    def request_closed(self) -> None:
        """Count it out again."""
        self.num_open -= 1
        if self.num_open == 0:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Return when no generation request is open."""
        await self._idle.wait()

    async def watch(self, engine: EngineClient, *, model_name: str, tokenizer_hash: str) -> None:
        """Ask the engine for its health, for ever; read its limits whenever it starts to serve."""
        while True:
            before = self.engine_reason
            try:
                self.engine_reason = await self._look(engine, tokenizer_hash)
            except Exception:  # a watch that ends would leave its last word standing for ever
                logger.exception("the engine's health could not be read")
                self.engine_reason = "the engine's health could not be read"
            if self.engine_reason != before:
                if self.engine_reason is None:
                    logger.info("ready: the engine at %s serves %s", engine.address, model_name)
                elif before == _NOT_ASKED:  # both have just been started, most often
                    logger.info("waiting for the engine at %s: %s", engine.address, self.engine_reason)
                else:
                    logger.warning("not ready: %s", self.engine_reason)
            await asyncio.sleep(_CHECK_S if self.engine_reason is None else _POLL_S)

    async def _look(self, engine: EngineClient, tokenizer_hash: str) -> str | None:
        if not await engine.is_serving(timeout=_TIMEOUT_S):
            return "the engine is not serving"
        if self.engine_reason is None and self.model_info is not None:
            return None
        return await self._read_info(engine, tokenizer_hash)

    async def _read_info(self, engine: EngineClient, tokenizer_hash: str) -> str | None:
        try:
            info = await engine.model_info(timeout=_TIMEOUT_S)
        except (BritonError, EngineFault) as error:
            return f"the engine serves, but does not say its limits: {error}"
        if info.tokenizer_hash and info.tokenizer_hash != tokenizer_hash:
            return (
                f"the engine's tokenizer ({info.tokenizer_hash[:12]}) is not the gateway's ({tokenizer_hash[:12]}): "
                "start both from one engine directory"
            )
        self.model_info = info
        return None
