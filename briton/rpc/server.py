"""The gRPC server of an engine process: its port, its services, its health."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from briton.engine.engine import Engine, EngineState
from briton.errors import BritonError
from briton.rpc.ports import claim_port
from briton.rpc.service import EngineService
from briton.text.tokenizer import Tokenizer
from briton.v1 import engine_pb2 as pb
from briton.v1 import engine_pb2_grpc as pb_grpc

SERVICE = pb.DESCRIPTOR.services_by_name["Engine"].full_name
MAX_MESSAGE_BYTES = 16 * 2**20  # a prompt far over any context is refused by name, not by the transport
OPTIONS = (
    ("grpc.so_reuseport", 0),  # a port in use is an error
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    # a client whose machine has gone is noticed, and its requests end
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # clients may ask the same of us
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
)


class EngineServer:
    """Engine, health and reflection on one port. Serving starts at once, health says so when an engine is attached.

    All methods belong to the loop that called `start`.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host = host
        self.port = port  # after `start` the real one
        self._service = EngineService()
        self._health = health.aio.HealthServicer()
        self._states: asyncio.Queue[EngineState] = asyncio.Queue()

    async def start(self) -> None:
        """Listen: every health answer is NOT_SERVING. Raises BritonError when the port cannot be had."""
        self._server = grpc.aio.server(options=OPTIONS)  # without a limit of calls: health is always told
        pb_grpc.add_EngineServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        claim_port(self.host, self.port, "--port")  # gRPC's own refusal comes with a page of its core's log
        address = f"[{self.host}]" if ":" in self.host else self.host
        try:
            self.port = self._server.add_insecure_port(f"{address}:{self.port}")
        except RuntimeError as error:
            raise BritonError(f"cannot listen on {address}:{self.port}: {error}") from None
        await self._set_health(serving=False)
        await self._server.start()
        self._follower = asyncio.create_task(self._follow())

    def attach(self, engine: Engine, tokenizer: Tokenizer | None = None) -> None:
        """Serve a started engine, and follow its state with the health service."""
        self._service.attach(engine, tokenizer)
        engine.on_state.append(self._states.put_nowait)
        self._states.put_nowait(engine.state)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let the open ones end within `grace_s` seconds, cancel the rest."""
        self._follower.cancel()
        self._service.slow_readers.close()
        await self._set_health(serving=False)
        await self._server.stop(grace_s)

    async def _follow(self) -> None:
        while True:
            state = await self._states.get()
            await self._set_health(serving=state is EngineState.SERVING)

    async def _set_health(self, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE):
            await self._health.set(service, status)
