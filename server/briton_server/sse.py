"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from briton_server.disconnect import cancelled_on_disconnect

DONE = b"data: [DONE]\n\n"
_KEEPALIVE = b": keep-alive\n\n"

logger = logging.getLogger(__name__)


class EventStream(Response):
    """Sends a generator's events. The status goes out with the first of them, so an error before it still gets its own.

    An error after it becomes an event (`error_event`), and the stream ends. The generator is closed at once when the
    client goes away. A stream that has been silent for `keepalive_s` gets a comment, which clients ignore and proxies
    count as life; after such a comment the status is out. A client that has not read all of it after `timeout_s` loses
    its connection, by `abort`.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        keepalive_s: float,
        timeout_s: float | None,
        abort: Callable[[], None] | None,
        error_event: Callable[[Exception], bytes],
        on_disconnect: Callable[[], None],
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._events = events
        self._keepalive_s = keepalive_s
        self._timeout_s = timeout_s
        self._abort = abort
        self._error_event = error_event
        self._on_disconnect = on_disconnect
        self._started = False
        self._last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all. Raises the generator's exception when nothing was sent before it."""
        self._last_sent = time.monotonic()
        keepalive = asyncio.create_task(self._keep_alive(send))
        deadline: asyncio.TimerHandle | None = None
        if self._abort is not None and self._timeout_s is not None:
            deadline = asyncio.get_running_loop().call_later(self._timeout_s, self._on_timeout)
        try:
            async with cancelled_on_disconnect(receive) as scope_of_client:
                await self._send_events(send)
            if scope_of_client.cancelled_caught:
                self._on_disconnect()
        finally:
            keepalive.cancel()
            if deadline is not None:
                deadline.cancel()
            await self._events.aclose()

    async def _send_events(self, send: Send) -> None:
        try:
            async for data in self._events:
                if not self._started:
                    await self._start(send)
                self._last_sent = time.monotonic()
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except Exception as error:
            if not self._started:
                raise
            await send({"type": "http.response.body", "body": self._error_event(error), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _on_timeout(self) -> None:
        logger.warning("a client has not read its stream within %g s: its connection is ended", self._timeout_s)
        assert self._abort is not None
        self._abort()

    async def _start(self, send: Send) -> None:
        self._started = True
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

    async def _keep_alive(self, send: Send) -> None:
        while True:
            silent = time.monotonic() - self._last_sent
            if silent < self._keepalive_s:
                await asyncio.sleep(self._keepalive_s - silent)
                continue
            if not self._started:
                await self._start(send)
            self._last_sent = time.monotonic()
            await send({"type": "http.response.body", "body": _KEEPALIVE, "more_body": True})
