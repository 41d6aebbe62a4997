"""The head of a request, however its bytes arrive: what is found in it, and how many of them are looked at."""

from __future__ import annotations

import itertools
import re
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from briton_server import http_connection
from briton_server.http_connection import MAX_HEAD_BYTES, ServerConnection

BEGIN = b"GET / HTTP/1.1\r\nHost: x\r\n"


class CountingBuffer(bytearray):
    """A receive buffer that counts the bytes which are copied out of it, or searched."""

    num_read = 0

    def __bytes__(self) -> bytes:
        self.num_read += len(self)
        return b"".join((self,))

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.num_read += len(found) if isinstance(key, slice) else 1
        return found

    def find(self, wanted: Any, start: Any = 0, stop: Any = None) -> int:
        stop = len(self) if stop is None else stop
        self.num_read += stop - start
        return super().find(wanted, start, stop)


class CountingPattern:
    """A compiled pattern that counts the bytes it searches."""

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self.pattern = pattern
        self.num_read = 0

    def search(self, text: bytes, start: int = 0, stop: int | None = None) -> re.Match[bytes] | None:
        stop = len(text) if stop is None else stop
        self.num_read += stop - start
        return self.pattern.search(text, start, stop)


def test_a_dribbled_head_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """62 kB in one-byte segments took 35 s of the event loop: each segment looked at all before it."""
    pattern = CountingPattern(http_connection._DOUBTFUL_LINE)
    monkeypatch.setattr(http_connection, "_DOUBTFUL_LINE", pattern)
    connection = ServerConnection()
    buffer = connection._receive_buffer._data = CountingBuffer()
    head = BEGIN + b"X-Long: " + b"a" * 8000 + b"\r\n\r\n"
    for i in range(len(head)):
        connection.receive_data(head[i : i + 1])
        event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert len(head) <= pattern.num_read, "it was counted"
    assert buffer.num_read + pattern.num_read < 20 * len(head)


def outcome(segments: list[bytes]) -> list[str]:
    """What comes of a connection's bytes: the targets of its requests, and the refusal."""
    connection, targets = ServerConnection(), []
    for segment in filter(None, segments):
        connection.receive_data(segment)
        try:
            while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.Request):
                    targets.append(event.target.decode())
                if isinstance(event, h11.EndOfMessage):
                    connection.send(h11.Response(status_code=204, headers=[]))
                    connection.send(h11.EndOfMessage())
                    connection.start_next_cycle()
        except h11.RemoteProtocolError as error:
            return [*targets, str(error)]
    return targets


_LINES = st.sampled_from([b"A: b", b" folded: x", b"", b"C: \rd", b"GET /2 HTTP/1.1", b"Host: y", b"Content-Length: 3"])
_ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\r\n\r\n", b"\n", b"\r"])


@given(lines=st.lists(st.tuples(_LINES, _ENDS), max_size=8), cuts=st.lists(st.integers(0, 200), max_size=6))
def test_segments_change_nothing(lines: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    """Neither the requests that are read nor why one is refused, pipelined ones and bodies included."""
    data = BEGIN + b"".join(line + end for line, end in lines)
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    whole = outcome([data])
    cut = outcome([data[a:b] for a, b in itertools.pairwise(bounds)])
    bytewise = outcome([data[i : i + 1] for i in range(len(data))])
    assert [text for text in cut if text.startswith("/")] == [text for text in whole if text.startswith("/")]
    assert len(cut) == len(whole)
    assert len(bytewise) == len(whole)


def test_a_dribbled_head_is_bounded() -> None:
    connection = ServerConnection()
    connection.receive_data(BEGIN)
    for _ in range(MAX_HEAD_BYTES - len(BEGIN)):
        assert connection.next_event() is h11.NEED_DATA
        connection.receive_data(b"a")
    assert connection.next_event() is h11.NEED_DATA
    connection.receive_data(b"a")
    with pytest.raises(h11.RemoteProtocolError, match=f"{MAX_HEAD_BYTES} bytes"):
        connection.next_event()
