"""Streamed chat requests whose answer may be a refusal, and that may be left before their end.

As in `stream_client`, bytes are only stored while a stream runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from dataclasses import dataclass
from typing import Any

from stream_client import Reads, Stream, read_answer, stream_of

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *(\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True)
class Outcome:
    """What became of one request. Times are of time.perf_counter()."""

    sent_at: float
    status: int  # 0: the connection broke
    retry_after_s: float | None = None
    stream: Stream | None = None  # of a 200 that ran to its end

    @property
    def kind(self) -> str:
        """The status, or how a 200 went wrong."""
        return "200, broken off" if self.status == 200 and self.stream is None else str(self.status)

    @property
    def first_token_s(self) -> float:
        """From its sending to its first text. Raises ValueError where none came."""
        if self.stream is None:
            raise ValueError(f"a request that ended with {self.status} has no first token")
        return self.stream.time_to_first_token


async def ask(host: str, port: int, body: dict[str, Any]) -> Outcome:
    """Send one request and read its answer to the end."""
    sent_at = time.perf_counter()
    try:
        reads = await read_answer(host, port, body)
    except OSError:
        return Outcome(sent_at, 0)
    return outcome_of(sent_at, reads)


def outcome_of(sent_at: float, reads: Reads) -> Outcome:
    """What an answer says."""
    head = b"".join(received for _, received in reads)
    match = _STATUS.match(head)
    if match is None:
        return Outcome(sent_at, 0)
    if match[1] == b"200":
        with contextlib.suppress(RuntimeError):
            return Outcome(sent_at, 200, stream=stream_of(reads))
        return Outcome(sent_at, 200)
    wait = _RETRY_AFTER.search(head.partition(b"\r\n\r\n")[0] + b"\r\n")
    return Outcome(sent_at, int(match[1]), float(wait[1]) if wait else None)


async def first_token_s(host: str, port: int, body: dict[str, Any]) -> float:
    """Seconds from a request's sending to its first text. Raises RuntimeError when none came."""
    outcome = await ask(host, port, body)
    if outcome.stream is None:
        raise RuntimeError(f"the server answered {outcome.kind}")
    return outcome.first_token_s


class Crowd:
    """Many requests that run in the background until they are left."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._tasks: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def send(self, bodies: list[dict[str, Any]]) -> None:
        """Connect and send each; what is answered is read and dropped."""
        for body in bodies:
            payload = json.dumps({**body, "stream": True}).encode()
            reader, writer = await asyncio.open_connection(*self._address)
            head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
            await writer.drain()
            self._writers.append(writer)
            self._tasks.append(asyncio.create_task(_drop(reader)))

    async def leave(self) -> None:
        """Close every connection: the server cancels what still runs."""
        for writer in self._writers:
            writer.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _drop(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(1 << 16):
            pass
