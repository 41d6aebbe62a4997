"""h11's view of one connection, stricter than h11: what two servers could read differently is refused."""

from __future__ import annotations

import re

import h11

MAX_HEAD_BYTES = 64 * 1024  # request line, headers and the empty line that ends them

# h11 takes a line that ends in LF alone, and a field that goes on in the next line (RFC 9112, 2.2 and 5.2, let a
# server do either). A proxy in front that reads them otherwise would see other requests than this server.
_DOUBTFUL_LINE = re.compile(rb"(?<!\r)\n|\r\n[ \t]")
_ABSOLUTE_TARGET = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


class ServerConnection(h11.Connection):
    """One connection of a client. `refusal` is the error that ended it: its hint is the status to answer with.

    The head of a request is bounded exactly, however its bytes arrive; one that is offered an upgrade is read as any
    other. The head of an answer says `connection: close` when the request's body has not been read to its end.
    """

    def __init__(self) -> None:
        """For the server's side."""
        super().__init__(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self.refusal: h11.RemoteProtocolError | None = None
        self._num_checked = 0  # bytes of the head that is coming in, found in order

    @property
    def num_buffered(self) -> int:
        """Bytes that were received and not yet made into events."""
        return len(self._receive_buffer)

    @property
    def client_may_send(self) -> bool:
        """Whether the client is in the middle of a request: of one that was refused too."""
        return self.refusal is not None or self.their_state is h11.SEND_BODY

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """The next event, as h11 gives it. Raises h11.RemoteProtocolError, which `refusal` keeps."""
        try:
            if self.their_state is not h11.IDLE:
                return super().next_event()
            if not self._check_head():
                return h11.NEED_DATA
            event = super().next_event()
            if not isinstance(event, h11.Request):
                return event
            self._num_checked = 0
            return _checked_request(event)
        except h11.RemoteProtocolError as error:
            self.refusal = error
            raise

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override]
        """The event's bytes."""
        if isinstance(event, h11.Response) and self.their_state is h11.SEND_BODY:
            event = h11.Response(
                status_code=event.status_code,
                headers=[*event.headers, (b"connection", b"close")],
                reason=event.reason,
                http_version=event.http_version,
            )
        return super().send(event)

    def _check_head(self) -> bool:
        """Skip empty lines before a head, and refuse one that is too long or doubtful; False: nothing of it is here.

        Each byte is looked at once, however many segments it comes in: a head of one-byte segments would otherwise
        take the event loop for as long as all its beginnings together. (h11's own search goes on where it stopped.)
        """
        received = self._receive_buffer._data  # bytes(self._receive_buffer) is a copy of all of it
        if received.startswith((b"\r", b"\n")):  # RFC 9112, 2.2: empty lines are to be ignored
            self._receive_buffer.maybe_extract_at_most(len(received) - len(received.lstrip(b"\r\n")))
        if not received:
            return False
        # What is sought may have begun in what was looked at before: the end of a head, or a doubtful line.
        end = received.find(b"\r\n\r\n", max(0, self._num_checked - 3))
        size = end + 4 if end >= 0 else len(received)
        if size > MAX_HEAD_BYTES:
            raise h11.RemoteProtocolError(
                f"the request's head is larger than the limit of {MAX_HEAD_BYTES} bytes", error_status_hint=431
            )
        if _DOUBTFUL_LINE.search(received, max(0, self._num_checked - 2), size) is not None:
            raise h11.RemoteProtocolError("each line of the request's head must end in CRLF and hold a whole field")
        self._num_checked = size
        return True


def _checked_request(request: h11.Request) -> h11.Request:
    """The request with its target as a path. Raises h11.RemoteProtocolError for a length of two readings."""
    names = [name for name, _ in request.headers]
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version < b"1.1"):
        raise h11.RemoteProtocolError("Transfer-Encoding beside Content-Length, or in HTTP/1.0, is refused")
    absolute = _ABSOLUTE_TARGET.match(request.target)
    if absolute is None:
        return request
    target = request.target[absolute.end() :]
    return h11.Request(
        method=request.method,
        target=target if target.startswith(b"/") else b"/" + target,
        headers=request.headers,
        http_version=request.http_version,
    )
