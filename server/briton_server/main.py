"""A gateway as a process: its socket, its signals, its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
import uvloop

from briton.errors import BritonError
from briton_server.app import create_app
from briton_server.gateway import Gateway
from briton_server.http_server import allow_connections, listen, server_of
from briton_server.prompts import Prompts
from briton_server.settings import Settings

if TYPE_CHECKING:
    from briton.config.config import Config

_FLUSH_S = 2.0  # for the last bytes of answers that were cut off

logger = logging.getLogger(__name__)


def run_gateway(config: Config, *, tokenizer_dir: Path, engine_address: str, host: str, port: int) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. Starts at once: /ready says 503 until the engine serves.

    At the signal /ready says 503 and open requests may finish within `drain_timeout_s`; a second signal ends them.
    """
    settings = Settings.from_config(config, tokenizer_dir=tokenizer_dir, engine_address=engine_address)
    max_connections = allow_connections(settings.max_connections)
    if max_connections < settings.max_connections:
        logger.warning(
            "at most %d connections, not briton.max_connections, %d: the limit of open files (ulimit -n) is too low",
            max_connections,
            settings.max_connections,
        )
        settings = replace(settings, max_connections=max_connections)
    try:
        listener = listen(host, port)
    except OSError as error:
        logger.error("cannot listen on %s:%d: %s", host, port, error.strerror or error)
        return 1
    with listener:
        try:
            prompts = Prompts.load(tokenizer_dir)
        except BritonError as error:
            logger.error("%s", error)
            return 1
        app = create_app(settings, prompts)
        server = server_of(app)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its milestones are not this server's
        logger.info("listening on http://%s:%d, engine at %s", host, listener.getsockname()[1], engine_address)
        # What lives now lives as long as the process: no collection needs to walk it while tokens wait.
        gc.collect()
        gc.freeze()
        return uvloop.run(_serve(server, listener, app.state.gateway))


async def _serve(server: uvicorn.Server, listener: socket.socket, gateway: Gateway) -> int:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, gateway, number)
    stopper = asyncio.create_task(_stop_after_drain(server, gateway))
    await server.serve(sockets=[listener])
    stopper.cancel()
    return 0 if server.started else 1


def _on_signal(gateway: Gateway, number: signal.Signals) -> None:
    if gateway.readiness.draining:
        logger.warning("%s again: ending %d open requests", number.name, gateway.readiness.num_open)
        gateway.engine.end_calls()
        return
    logger.info("%s: draining, %d open requests", number.name, gateway.readiness.num_open)
    gateway.readiness.drain()


async def _stop_after_drain(server: uvicorn.Server, gateway: Gateway) -> None:
    """Once told to drain, wait for open requests, end those that take too long, and stop the server."""
    readiness = gateway.readiness
    await readiness.drain_requested.wait()
    try:
        await asyncio.wait_for(readiness.wait_idle(), gateway.settings.drain_timeout_s)
    except asyncio.TimeoutError:
        logger.warning("drain timeout: ending %d open requests", readiness.num_open)
        gateway.engine.end_calls()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(readiness.wait_idle(), _FLUSH_S)
    server.should_exit = True
