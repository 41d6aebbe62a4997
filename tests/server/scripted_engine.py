"""An engine service that does what a test says: for what the real one does only under load or in distress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from briton.rpc import statuses as grpc_errors
from briton.v1 import engine_pb2 as pb
from briton.v1 import engine_pb2_grpc as pb_grpc

Context = grpc.aio.ServicerContext[Any, Any]
Behaviour = Callable[[pb.GenerateRequest, "Context"], Awaitable[None]]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class ScriptedEngine(pb_grpc.EngineServicer, health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # untyped
    """`generate` is called for each request; `health` and `tokenizer_hash` are what it says of itself."""

    def __init__(self, generate: Behaviour, *, tokenizer_hash: str = "") -> None:
        self.generate = generate
        self.tokenizer_hash = tokenizer_hash
        self.health = SERVING
        self.requests: list[pb.GenerateRequest] = []
        self.cancelled = asyncio.Event()  # some call was cancelled by the client

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override]
        """What the test wants."""
        self.requests.append(request)
        try:
            await self.generate(request, context)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.ModelInfo:
        """The least that a gateway needs."""
        return pb.ModelInfo(model_name="scripted", max_seq_len=1000, tokenizer_hash=self.tokenizer_hash, version="9.9")

    async def GetStats(self, request: pb.GetStatsRequest, context: Context) -> pb.Stats:
        """Something to scrape."""
        return pb.Stats(num_running=3, num_output_tokens=1234)

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """The health."""
        return health_pb2.HealthCheckResponse(status=self.health)


@asynccontextmanager
async def run_scripted_engine(engine: ScriptedEngine, port: int = 0) -> AsyncIterator[str]:
    """Serve it on 127.0.0.1; gives HOST:PORT."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_EngineServicer_to_server(engine, server)
    health_pb2_grpc.add_HealthServicer_to_server(engine, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def says(text: str, *, then: Exception | None = None) -> Behaviour:
    """Each byte of the text as a token of its own, then the end, or an error."""

    async def generate(request: pb.GenerateRequest, context: Context) -> None:
        for byte in text.encode():
            await context.write(pb.GenerateResponse(outputs=[pb.SequenceOutput(token_ids=[byte])]))
        if then is not None:
            await grpc_errors.abort(context, then)
        end = pb.SequenceOutput(finish_reason=pb.FINISH_REASON_STOP)
        usage = pb.Usage(prompt_tokens=1, completion_tokens=len(text), queue_s=0.25, prefill_s=0.5, decode_s=1)
        await context.write(pb.GenerateResponse(outputs=[end], usage=usage))

    return generate


def fails(error: Exception) -> Behaviour:
    """Refuse every request."""
    return says("", then=error)


async def waits(request: pb.GenerateRequest, context: Context) -> None:
    """Say nothing, until the call is cancelled."""
    await asyncio.sleep(3600)
