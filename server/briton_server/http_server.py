"""The HTTP server of an application: uvicorn, set up in one place for production and tests."""

from __future__ import annotations

import contextlib
import functools
import resource
import socket
from collections.abc import Generator
from typing import Any

import uvicorn
from fastapi import FastAPI

from briton_server.gateway import Gateway
from briton_server.http_protocol import RESERVED_CONNECTIONS, GatewayProtocol

KEEP_ALIVE_S = 75  # an idle connection stays open: longer than the 60 s of most load balancers, which then close first
_OTHER_FILES = 128  # that the process has open beside its connections, with room to spare
_GRACEFUL_S = 2  # for connections to close after the drain


class GatewayServer(uvicorn.Server):
    """uvicorn, without its signal handlers: it closes the socket first, and then nobody can ask /ready."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to whoever runs the server."""
        yield


def server_of(app: FastAPI) -> GatewayServer:
    """A server of the application, for `serve(sockets=[listen(...)])`. It logs nothing for each request."""
    gateway: Gateway = app.state.gateway
    protocol: Any = functools.partial(GatewayProtocol, max_connections=gateway.settings.max_connections)
    server = GatewayServer(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACEFUL_S,
        )
    )
    gateway.metrics.connections.set_function(lambda: len(server.server_state.connections))
    return server


def allow_connections(wanted: int) -> int:
    """How many connections this process can hold open, at most `wanted`: its limit of open files is raised for them,
    as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED_CONNECTIONS + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, min(wanted, soft - RESERVED_CONNECTIONS - _OTHER_FILES))
    return wanted


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)  # so that a second server on this port fails to bind
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
