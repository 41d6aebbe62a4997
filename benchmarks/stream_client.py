"""A client of streamed chat completions that costs next to nothing: it shares two cores with what it measures.

While a stream runs, bytes are only stored with the time they came; they are read as JSON when all streams have ended.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

_TIMEOUT_S = 120.0
_EVENT = re.compile(rb"data: (.*?)\r?\n\r?\n", re.DOTALL)  # one server-sent event; HTTP chunk sizes stand between two


@dataclass(frozen=True)
class Stream:
    """One streamed answer. Times are seconds from its request."""

    token_times: tuple[float, ...]  # of each event with text
    prompt_tokens: int
    output_tokens: int

    @property
    def time_to_first_token(self) -> float:
        """Seconds from request to first text."""
        return self.token_times[0]

    @property
    def inter_token_times(self) -> list[float]:
        """Seconds between texts."""
        return [later - earlier for earlier, later in pairwise(self.token_times)]


@dataclass(frozen=True)
class Answers:
    """All streams of one workload."""

    wall_s: float
    client_cpu_s: float
    streams: tuple[Stream, ...]

    @property
    def output_rate(self) -> float:
        """Output tokens a second, end to end."""
        return sum(stream.output_tokens for stream in self.streams) / self.wall_s


def chat(host: str, port: int, bodies: Sequence[dict[str, Any]]) -> Answers:
    """Send all requests at once, each on a connection of its own, and read every stream to its end."""

    async def run() -> tuple[float, list[Reads]]:
        started = time.perf_counter()
        reads = await asyncio.wait_for(asyncio.gather(*(read_answer(host, port, body) for body in bodies)), _TIMEOUT_S)
        return time.perf_counter() - started, reads

    cpu = time.process_time()
    wall, reads = asyncio.run(run())
    cpu = time.process_time() - cpu
    return Answers(wall, cpu, tuple(stream_of(each) for each in reads))


Reads = list[tuple[float, bytes]]  # what came, and when, in seconds from the request


async def read_answer(host: str, port: int, body: dict[str, Any]) -> Reads:
    """The whole HTTP answer, as it came."""
    payload = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload)
        reads: Reads = []
        while received := await reader.read(1 << 16):
            reads.append((time.perf_counter() - started, received))
        return reads
    finally:
        writer.close()


def stream_of(reads: Reads) -> Stream:
    """The stream of an answer that has come to its end. Raises RuntimeError for any other."""
    raw = b"".join(received for _, received in reads)
    if not raw.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"the server answered {raw[:1000]!r}")
    ends = list(accumulate(len(received) for _, received in reads))
    times = []
    usage: dict[str, Any] | None = None
    payload = b""
    for match in _EVENT.finditer(raw):
        payload = match[1]
        if payload == b"[DONE]":
            break
        event = json.loads(payload)
        if "error" in event:
            raise RuntimeError(f"the stream ended with {event['error']}")
        usage = event.get("usage") or usage
        if any(choice["delta"].get("content") for choice in event["choices"]):
            times.append(reads[bisect_left(ends, match.end())][0])
    if payload != b"[DONE]" or usage is None or not times:
        raise RuntimeError("a stream broke off")
    return Stream(tuple(times), usage["prompt_tokens"], usage["completion_tokens"])
