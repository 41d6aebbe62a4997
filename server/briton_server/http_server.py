"""The HTTP server of an application: uvicorn, set up in one place for production and tests."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Generator

import uvicorn
from fastapi import FastAPI

from briton_server.http_protocol import GatewayProtocol

KEEP_ALIVE_S = 75  # an idle connection stays open: longer than the 60 s of most load balancers, which then close first
_GRACEFUL_S = 2  # for connections to close after the drain


class GatewayServer(uvicorn.Server):
    """uvicorn, without its signal handlers: it closes the socket first, and then nobody can ask /ready."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to whoever runs the server."""
        yield


def server_of(app: FastAPI) -> GatewayServer:
    """A server of the application, for `serve(sockets=[listen(...)])`. It logs nothing for each request."""
    return GatewayServer(
        uvicorn.Config(
            app,
            http=GatewayProtocol,
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=_GRACEFUL_S,
        )
    )


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
