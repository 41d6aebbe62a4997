"""uvicorn's HTTP protocol, made safe to stand in the open: headers end, and an offered upgrade is declined."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024  # beside what the first read of them holds, at most 256 KiB
HEADER_TIMEOUT_S = 30.0  # from the connection, or the first byte of a later request, to the end of its headers

_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class GatewayProtocol(HttpToolsProtocol):
    """One connection. Its parser would keep headers without end, wait for them for ever, and take an upgrade that is
    merely offered (h2c, as Java's HTTP client does with every request) for one that happens, losing the body."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As uvicorn makes them."""
        super().__init__(*args, **kwargs)
        self._in_message = False
        self._in_headers = False
        self._num_header_bytes = 0
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_header_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; end a connection whose headers do not end."""
        was_in_headers = self._in_headers
        super().data_received(data if self._in_message else _without_upgrade(data))
        if was_in_headers and self._in_headers:
            self._num_header_bytes += len(data)
            if self._num_header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
                self.transport.write(_TOO_LARGE)
                self.transport.close()

    def on_message_begin(self) -> None:
        """A request line follows."""
        self._in_message = self._in_headers = True
        self._num_header_bytes = 0
        if self._header_timer is None:
            self._start_header_timer()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The body follows."""
        self._in_headers = False
        self._stop_header_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next request may follow."""
        self._in_message = False
        super().on_message_complete()

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self.timeout_keep_alive_handler)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None


def _without_upgrade(data: bytes) -> bytes:
    """A request without the Upgrade field of its headers: a server may ignore it, and this one knows no upgrade."""
    head, end, rest = data.partition(b"\r\n\r\n")
    if not end or _UPGRADE.search(head) is None:
        return data
    return _UPGRADE.sub(b"", head) + end + rest
