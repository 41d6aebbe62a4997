"""What `briton serve` asks: is the port free, does the engine serve, is the gateway ready."""

from __future__ import annotations

import http.client

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_PROBE_TIMEOUT_S = 1.0


def local_host(host: str) -> str:
    """Where a client on this machine reaches a server that listens on `host`, in brackets if it is an IPv6 address."""
    reachable = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{reachable}]" if ":" in reachable else reachable


def engine_is_serving(address: str) -> bool:
    """Whether the engine's gRPC health at HOST:PORT says SERVING. Takes a second at most."""
    return _engine_health(address) == int(health_pb2.HealthCheckResponse.SERVING)


def engine_is_live(address: str) -> bool:
    """Whether the engine's gRPC health at HOST:PORT answers, whatever it says. Takes a second at most."""
    return _engine_health(address) is not None


def _engine_health(address: str) -> int | None:
    # A proxy from the environment must not come between two processes of one machine.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_PROBE_TIMEOUT_S)
        except grpc.RpcError:
            return None
        return int(reply.status)


def gateway_is_ready(address: str) -> bool:
    """Whether GET /ready at HOST:PORT answers 200. Takes a second at most."""
    return _is_ok(address, "/ready")


def gateway_is_live(address: str) -> bool:
    """Whether GET /live at HOST:PORT answers 200, whatever the engine does. Takes a second at most."""
    return _is_ok(address, "/live")


def _is_ok(address: str, path: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
