"""The gateway's end of the gRPC line: one channel to one engine, which comes back by itself when the engine does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from briton.errors import QUEUE_SIZE, QueueFull, Unavailable
from briton.v1 import engine_pb2, engine_pb2_grpc
from briton_server.engine_errors import error_from_rpc

GenerateCall: TypeAlias = "grpc.aio.UnaryStreamCall[engine_pb2.GenerateRequest, engine_pb2.GenerateResponse]"

FULL_S = 0.1  # a full queue is full for other requests, too, and does not empty sooner
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),  # a proxy variable of the environment is not meant for the engine next door
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


class EngineClient:
    """Calls of the engine service. Errors are BritonErrors, or EngineFault for a bug. Made inside the event loop."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        self._engine: engine_pb2_grpc.EngineAsyncStub = engine_pb2_grpc.EngineStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._open: set[GenerateCall] = set()
        self._calls_ended = False
        self._full: QueueFull | None = None  # the engine's last refusal for a full queue,
        self._full_until = 0.0  # which stands until then, by the event loop's clock

    def check_room(self) -> None:
        """Raise QueueFull where the engine's queue was full just now: nothing is worth the work of another request for
        FULL_S. What the engine refuses for a request's own sake says nothing about others."""
        if self._full is not None and asyncio.get_running_loop().time() < self._full_until:
            raise self._full

    def generate(self, request: engine_pb2.GenerateRequest, *, timeout: float | None) -> GenerateCall:
        """Start a call. `cancel()` on it frees what the request holds; `timeout` (seconds) is the engine's too."""
        call = self._engine.Generate(request, timeout=timeout)
        self._open.add(call)
        call.add_done_callback(self._open.discard)
        return call

    async def responses(self, call: GenerateCall) -> AsyncGenerator[engine_pb2.GenerateResponse, None]:
        """The responses of a call. Raises what its status stands for; Unavailable once `end_calls` has ended it."""
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            told = error_from_rpc(error)
            if isinstance(told, QueueFull) and told.code == QUEUE_SIZE:
                self._full, self._full_until = told, asyncio.get_running_loop().time() + min(FULL_S, told.retry_after_s)
            raise told from error
        except asyncio.CancelledError:
            if self._calls_ended:  # gRPC's word for it: nobody cancelled this task
                raise Unavailable("the server is shutting down") from None
            raise

    def end_calls(self) -> None:
        """Cancel every open Generate call, for good: the server is leaving."""
        self._calls_ended = True
        for call in list(self._open):
            call.cancel()

    async def is_serving(self, *, timeout: float) -> bool:
        """Whether the engine's health says SERVING, within `timeout` seconds."""
        try:
            answer = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def model_info(self, *, timeout: float) -> engine_pb2.ModelInfo:
        """Limits and features of the engine."""
        try:
            return await self._engine.GetModelInfo(engine_pb2.GetModelInfoRequest(), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from None

    async def stats(self, *, timeout: float) -> engine_pb2.Stats | None:
        """The engine's counters and gauges; None when it does not answer in time."""
        try:
            return await self._engine.GetStats(engine_pb2.GetStatsRequest(), timeout=timeout)
        except grpc.aio.AioRpcError:
            return None

    async def close(self) -> None:
        """End open calls and the channel."""
        self.end_calls()
        await self._channel.close()
