"""uvicorn's HTTP protocol over h11, made safe to stand in the open: heads, answers, and connections end."""

from __future__ import annotations

import asyncio
import http
import json
import logging
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from briton.errors import InvalidRequest
from briton_server.connection import CONNECTION_KEY, Connection
from briton_server.errors import error_body
from briton_server.http_connection import ServerConnection
from briton_server.http_transport import ClosingTransport

HEADER_TIMEOUT_S = 30.0  # from the connection, or the first byte of a later request, to the end of its head
SEND_TIMEOUT_S = 30.0  # for a client to read from a full send buffer
RESERVED_CONNECTIONS = 64  # beyond the limit, for whoever asks /live and /ready, and to say 503 to others
MAX_PIPELINED_BYTES = 64 * 1024  # received ahead of their turn; who sends more gets the answer under way, and no other
MAX_DISCARDED_BYTES = 16 * 1024**2  # of what is beyond that, before the connection is ended at once

logger = logging.getLogger(__name__)


class GatewayProtocol(H11Protocol):
    """One connection. uvicorn's would wait for ever for a head, for a client that reads nothing, and for the rest of a
    body that was refused; and while later requests wait in its buffer, it would not notice that the client left."""

    conn: ServerConnection
    transport: ClosingTransport  # type: ignore[assignment]

    def __init__(self, *args: Any, max_connections: int, **kwargs: Any) -> None:
        """As uvicorn makes them, but for `max_connections`."""
        super().__init__(*args, **kwargs)
        self.conn = ServerConnection()
        self._max_connections = max_connections
        self.header_timer: asyncio.TimerHandle | None = None
        self._send_timer: asyncio.TimerHandle | None = None
        self._num_discarded = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock, and say whether the connection is one too many."""
        super().connection_made(
            ClosingTransport(transport, self.loop, lambda: self.conn.client_may_send)  # type: ignore[arg-type]
        )
        num_connections = len(self.connections)
        connection = Connection(self.transport.abort, is_over_limit=num_connections > self._max_connections)
        self.app_state = {**self.app_state, CONNECTION_KEY: connection}
        if num_connections > self._max_connections + RESERVED_CONNECTIONS:
            self.transport.abort()
            return
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks, and tell the request."""
        self._stop_header_timer()
        self._stop_send_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)
        self.transport.lost()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless the connection is ending."""
        if self.transport.is_closing() or self.conn.their_state in (h11.MUST_CLOSE, h11.CLOSED):
            return  # RFC 9112, 9.6: nothing after a request that was announced as the last one is looked at
        if self.conn.is_answered_last:
            self._num_discarded += len(data)
            if self._num_discarded > MAX_DISCARDED_BYTES:
                logger.warning("a client sent %d bytes ahead: its connection is ended", self._num_discarded)
                self.transport.abort()
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._start_header_timer()

    def handle_events(self) -> None:
        """Act on what is in the parser."""
        super().handle_events()
        if self.conn.their_state is not h11.IDLE:
            self._stop_header_timer()
        elif self.conn.num_buffered:
            self._start_header_timer()
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY) or self.transport.is_closing():
            return
        if self.conn.their_state is h11.DONE and self.conn.num_buffered > MAX_PIPELINED_BYTES:
            # RFC 9112, 9.3.2 and 9.6: what was not answered before the close, the client may send again.
            self.conn.is_answered_last = True
            self.cycle.keep_alive = False
        self.flow.resume_reading()  # who does not read does not learn that the client left

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request with the status that fits, if no answer is under way, and close."""
        refusal = self.conn.refusal
        status = refusal.error_status_hint if refusal is not None else 400
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            error = InvalidRequest(f"no valid HTTP request: {refusal or msg}")
            content = json.dumps(error_body(error), separators=(",", ":")).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(content)),
                (b"connection", b"close"),
            ]
            reason = http.HTTPStatus(status).phrase.encode()
            for event in (
                h11.Response(status_code=status, headers=headers, reason=reason),
                h11.Data(data=content),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._stop_header_timer()
        self.transport.close()

    def pause_writing(self) -> None:
        """The client reads slower than it is sent to: give it some time."""
        super().pause_writing()
        self._send_timer = self.loop.call_later(SEND_TIMEOUT_S, self._on_send_timeout)

    def resume_writing(self) -> None:
        """It has read."""
        self._stop_send_timer()
        super().resume_writing()

    def _on_send_timeout(self) -> None:
        logger.warning("a client has read nothing for %g s: its connection is ended", SEND_TIMEOUT_S)
        self.transport.abort()

    def _should_upgrade(self) -> bool:
        return False  # a server may ignore an offer

    def _start_header_timer(self) -> None:
        if self.header_timer is None:
            self.header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self.timeout_keep_alive_handler)

    def _stop_header_timer(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None
