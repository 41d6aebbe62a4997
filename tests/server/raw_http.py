"""A client that writes bytes as they are: for what no HTTP library would send."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.server.running import MODEL, RunningGateway

WAIT_S = 10.0  # for what comes in a moment, or not at all
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}).encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
REQUEST = POST + LENGTH + b"\r\n" + BODY


@dataclass
class Answer:
    """One response."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        """The parsed body."""
        return json.loads(self.body)


class Connection:
    """One connection to a gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *parts: bytes, pause_s: float = 0.02) -> None:
        """Write the parts, each a segment of its own."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(pause_s)

    async def answer(self, *, has_body: bool = True) -> Answer:
        """The next response. `has_body`: false after HEAD."""
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), WAIT_S)
        status_line, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0)) if has_body else 0
        body = await asyncio.wait_for(self.reader.readexactly(length), WAIT_S)
        return Answer(int(status_line.split()[1]), body, headers)

    def reset(self) -> None:
        """Leave at once, as a process that is killed does: with a reset in place of an end."""
        client = self.writer.get_extra_info("socket")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def rest(self) -> bytes:
        """Everything that comes until the server closes; fails when it stays open."""
        return await asyncio.wait_for(self.reader.read(), WAIT_S)


@asynccontextmanager
async def connect(gateway: RunningGateway) -> AsyncIterator[Connection]:
    """A connection that ends with the block."""
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


async def exchange(gateway: RunningGateway, *parts: bytes) -> bytes:
    """Send the parts on a connection of their own; all that comes back until the server closes it."""
    async with connect(gateway) as connection:
        await connection.send(*parts)
        return await connection.rest()
