"""The gRPC servicer: calls to the engine, errors to status codes; nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from briton.engine.engine import Engine
from briton.errors import BritonError, InvalidRequest, QueueFull, Unavailable
from briton.rpc import statuses as grpc_errors
from briton.rpc.generate_handler import GenerateHandler
from briton.rpc.slow_readers import SlowReaders
from briton.rpc.wire import info_to_proto, stats_to_proto
from briton.text.tokenizer import Tokenizer
from briton.v1 import engine_pb2 as pb
from briton.v1 import engine_pb2_grpc as pb_grpc
from briton.v1.current_request import MAX_REQUEST_ID_LENGTH, current_request

logger = logging.getLogger(__name__)

MAX_OPEN_CALLS = 4096  # of Generate

Context = grpc.aio.ServicerContext[Any, Any]


class EngineService(pb_grpc.EngineServicer):
    """Generate, GetModelInfo and GetStats of one engine: UNAVAILABLE until one is attached."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._generate_handler: GenerateHandler | None = None
        self._open_calls = _OpenCalls()
        self.slow_readers = SlowReaders()

    def attach(self, engine: Engine, tokenizer: Tokenizer | None = None) -> None:
        """Serve this engine from now on. Without a tokenizer it takes and gives token ids only."""
        self._engine = engine
        self._generate_handler = GenerateHandler(engine, tokenizer)

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override]
        """One request; see the proto. Cancelling the call cancels this coroutine, and leaving `with` the request."""
        current_request.set(request.request_id[:MAX_REQUEST_ID_LENGTH])  # of this call's own task
        try:
            with self._open_calls.claim(request.request_id):
                await self._generate(request, context)
        except BritonError as error:
            logger.debug("request %r ends with %s: %s", request.request_id, type(error).__name__, error)
            await grpc_errors.abort(context, error)
        except Exception as error:
            logger.exception("request %r failed", request.request_id)
            await grpc_errors.abort(context, error)

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, context: Context) -> pb.ModelInfo:
        """Limits and features."""
        return info_to_proto((await self._running(context)).info)

    async def GetStats(self, request: pb.GetStatsRequest, context: Context) -> pb.Stats:
        """Counters and gauges."""
        return stats_to_proto((await self._running(context)).stats())

    async def _generate(self, request: pb.GenerateRequest, context: Context) -> None:
        if self._generate_handler is None:
            raise _starting()
        stream, builder = await self._generate_handler.start(request, context.time_remaining())
        with stream:
            async for chunks in stream:
                response = builder.add(chunks)
                if response is not None:
                    with self.slow_readers.writing():
                        await context.write(response)
                if builder.all_ended:
                    stream.finish()
                else:
                    for index in builder.take_stopped():
                        stream.finish_sequence(index)

    async def _running(self, context: Context) -> Engine:
        if self._engine is None:
            await grpc_errors.abort(context, _starting())
        return self._engine


def _starting() -> Unavailable:
    return Unavailable("the engine is starting: the model is not loaded yet")


class _OpenCalls:
    """The calls of Generate that are open: how many, and their callers' own request ids."""

    def __init__(self) -> None:
        self._num = 0
        self._ids: set[str] = set()

    @contextmanager
    def claim(self, request_id: str) -> Iterator[None]:
        """A place, and the id unless it is empty, while a call is open. Raises QueueFull and InvalidRequest."""
        if self._num >= MAX_OPEN_CALLS:
            raise QueueFull(f"{self._num} calls are open, which is the limit: try again later")
        if request_id in self._ids:
            raise InvalidRequest(f"request_id {request_id!r} is already open", "request_id")
        self._num += 1
        if request_id:
            self._ids.add(request_id)
        try:
            yield
        finally:
            self._num -= 1
            self._ids.discard(request_id)
