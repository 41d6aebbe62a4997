"""A served engine whose step never returns: from there to refused requests, and to serving again."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from serving import Serving
from traffic_model import example, variant

from briton.v1 import engine_pb2 as pb
from briton.v1 import engine_pb2_grpc as pb_grpc

_PROGRAM = Path(__file__).with_name("hanging_engine.py")
_TIMEOUT_S = 120.0
_DEADLINE_S = 1.0  # of each caller: shorter than what makes a step a stall


def hang() -> tuple[float, float]:
    """Seconds from the limit (`briton.stall_timeout_s`, the least that is a stall) to NOT_SERVING, and from the hang to
    a request that is answered. Callers give up after a second, and others come."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "hang"
        with Serving(variant("example"), program=(str(_PROGRAM), str(file))) as serving:
            serving.settle()
            return _measure(serving.engine, file)


def _measure(address: str, file: Path) -> tuple[float, float]:
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_reconnect_backoff_ms", 100)]
    stopped = threading.Event()
    with grpc.insecure_channel(address, options=options) as channel:
        callers = [threading.Thread(target=_call, args=(channel, stopped)) for _ in range(4)]
        for caller in callers:
            caller.start()
        try:
            time.sleep(2.0)
            file.touch()
            hung_at = _when(lambda: not file.exists())
            not_serving_s = _when(lambda: not _serves(channel)) - hung_at
            again_s = _when(lambda: _serves(channel) and _is_answered(channel)) - hung_at
        finally:
            stopped.set()
            for caller in callers:
                caller.join()
    limit_s = example()[0].briton.stall_timeout_s
    print(
        f"a step that hangs: not serving after {not_serving_s:.2f} s, of which {limit_s:g} are the limit; "
        f"serving again after {again_s:.2f} s"
    )
    return not_serving_s - limit_s, again_s


def _when(condition: Callable[[], bool]) -> float:
    """The time.monotonic() at which it holds. Raises TimeoutError."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing happened for {_TIMEOUT_S:.0f} s")
        time.sleep(0.02)
    return time.monotonic()


def _serves(channel: grpc.Channel) -> bool:
    try:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1)
    except grpc.RpcError:
        return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def _is_answered(channel: grpc.Channel) -> bool:
    try:
        return bool(list(pb_grpc.EngineStub(channel).Generate(_request(4), timeout=2)))
    except grpc.RpcError:
        return False


def _call(channel: grpc.Channel, stopped: threading.Event) -> None:
    """Request after request, each with a short deadline."""
    while not stopped.is_set():
        try:
            list(pb_grpc.EngineStub(channel).Generate(_request(200), timeout=_DEADLINE_S))
        except grpc.RpcError:
            time.sleep(0.05)


def _request(max_tokens: int) -> pb.GenerateRequest:
    sampling = pb.SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    return pb.GenerateRequest(text="Once upon a time", sampling=sampling)
