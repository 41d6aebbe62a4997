"""A transport whose `close` ends, and whose client learns why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

LINGER_S = 2.0  # after an answer that came before the request's end: what the client still sends is thrown away
FLUSH_TIMEOUT_S = 30.0  # for a client to read what was sent to it before the close


class ClosingTransport:
    """asyncio's transport but for its `close`.

    While the client still sends, only our side is closed at first: a socket that is closed with unread bytes is reset,
    and the reset overtakes the answer. And what the client does not read is not kept for ever.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, client_may_send: Callable[[], bool]
    ) -> None:
        """`client_may_send`: whether bytes are to be expected that nobody will look at."""
        self._transport = transport
        self._loop = loop
        self._client_may_send = client_may_send
        self._timer: asyncio.TimerHandle | None = None
        self.write = transport.write  # once for each event of each stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """End the connection once the client has what was written."""
        if self.is_closing():
            return
        if self._client_may_send():
            self._transport.write_eof()
            self._transport.resume_reading()  # whoever gets the data drops it; the end of it closes the transport
            self._timer = self._loop.call_later(LINGER_S, self._transport.abort)
        else:
            self._transport.close()
            if self._transport.get_write_buffer_size():
                self._timer = self._loop.call_later(FLUSH_TIMEOUT_S, self._transport.abort)

    def is_closing(self) -> bool:
        """Whether `close` or `abort` was called, or the connection was lost."""
        return self._timer is not None or self._transport.is_closing()

    def lost(self) -> None:
        """The connection is over."""
        if self._timer is not None:
            self._timer.cancel()
