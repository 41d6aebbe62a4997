"""Pieces of requests in any order, cut anywhere: no error of ours, no request and no connection that stays."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from briton_server import body, http_protocol, http_transport
from tests.fake_executor import FAKE_INFO, FakeExecutor
from tests.server.conftest import Serve, says
from tests.server.raw_http import BODY, LENGTH, POST, REQUEST, Connection, connect
from tests.server.running import RunningGateway

STREAM = BODY.replace(b"{", b'{"stream": true, ', 1)
PIECES = [
    REQUEST,
    POST,
    LENGTH,
    BODY,
    POST + b"Content-Length: %d\r\n\r\n" % len(STREAM) + STREAM,
    b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD /version HTTP/1.0\r\n\r\n",
    b"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
    b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://x HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /%zz?%ff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n",
    b"5\r\nhello\r\n",
    b"0\r\n\r\n",
    b"zz\r\n",
    b"Upgrade: h2c\r\nConnection: upgrade\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
    b"\r\n",
    b"\n",
    b"\x00\xff",
]


async def drop(connection: Connection) -> None:
    """Read whatever comes."""
    with contextlib.suppress(OSError):
        while await connection.reader.read(65536):
            pass


async def make_noise(gateway: RunningGateway, choice: random.Random) -> None:
    data = b"".join(choice.choices(PIECES, k=choice.randint(1, 7)))
    async with connect(gateway) as connection:
        reading = asyncio.create_task(drop(connection))
        with contextlib.suppress(OSError):
            while data:
                size = choice.choice((1, 10, 100, 1000))
                await connection.send(data[:size], pause_s=choice.choice((0.0, 0.0, 0.001)))
                data = data[size:]
        await asyncio.wait([reading], timeout=choice.choice((0.0, 0.1)))
        reading.cancel()


@pytest.mark.parametrize("seed", range(4))
async def test_noise(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    monkeypatch.setattr(http_transport, "LINGER_S", 0.05)
    monkeypatch.setattr(http_protocol, "HEADER_TIMEOUT_S", 0.2)
    monkeypatch.setattr(body, "BODY_TIMEOUT_S", 0.2)
    executor = FakeExecutor(FAKE_INFO, script=says("hi"), step_s=0.001)
    choice = random.Random(seed)
    async with serve(executor) as running:
        await asyncio.gather(*(make_noise(running, choice) for _ in range(40)))
        for _ in range(1000):
            if len(running.server.server_state.connections) <= 1:  # httpx's own
                break
            await asyncio.sleep(0.01)
        assert len(running.server.server_state.connections) <= 1
        assert running.gateway.readiness.num_open == 0
        assert executor.open_requests() == []
        assert (await running.http.get("/live")).status_code == 200
    assert [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")] == []
