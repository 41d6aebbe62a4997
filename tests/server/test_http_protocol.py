"""What clients do below HTTP: headers that do not end or never come, and upgrades that are offered."""

from __future__ import annotations

import asyncio
import json

import pytest

from briton_server import body, http_protocol
from tests.server.running import MODEL, RunningGateway

BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)


async def connect(gateway: RunningGateway) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def answer(gateway: RunningGateway, *parts: bytes) -> bytes:
    """All that comes back until the server closes the connection."""
    reader, writer = await connect(gateway)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.02)
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


@pytest.mark.parametrize("line", [b"X-%d: " + b"a" * 20_000 + b"\r\n", b"a" * 20_000])
async def test_headers_without_end_are_refused(gateway: RunningGateway, line: bytes) -> None:
    reader, writer = await connect(gateway)
    writer.write(HEAD + b"X: ")
    received = b""
    try:
        for _ in range(1000):
            writer.write(line)
            await writer.drain()
            await asyncio.sleep(0.001)
    except ConnectionError:
        pass
    else:
        raise AssertionError("20 MB of headers were taken")
    try:
        received = await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        received = b"HTTP/1.1 431"  # the reset overtook the answer
    finally:
        writer.close()
    assert received.startswith(b"HTTP/1.1 431")


async def test_long_headers_that_end_are_taken(gateway: RunningGateway) -> None:
    header = b"X: " + b"a" * 30_000 + b"\r\n"
    received = await answer(gateway, HEAD, header, LENGTH, b"Connection: close\r\n", b"\r\n", BODY)
    assert received.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("begin", [b"", HEAD])
async def test_headers_that_never_come(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, begin: bytes) -> None:
    monkeypatch.setattr(http_protocol, "HEADER_TIMEOUT_S", 0.1)
    assert await answer(gateway, begin) == b""


async def test_the_second_request_of_a_connection_has_its_own_time(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEADER_TIMEOUT_S", 0.3)
    request = HEAD + LENGTH + b"\r\n" + BODY
    received = await answer(gateway, request, request, HEAD)
    assert received.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize(
    "offer",
    [
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
        b"upgrade: websocket\r\nconnection: upgrade\r\n",
    ],
)
async def test_an_offered_upgrade_is_declined_and_the_body_kept(gateway: RunningGateway, offer: bytes) -> None:
    reader, writer = await connect(gateway)
    try:
        for parts in ([HEAD + offer + LENGTH + b"\r\n" + BODY], [HEAD + LENGTH + offer + b"\r\n", BODY]):
            for part in parts:
                writer.write(part)
                await writer.drain()
            assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 200")
            headers = await reader.readuntil(b"\r\n\r\n")
            length = int(headers.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            assert json.loads(await reader.readexactly(length))["choices"]
    finally:
        writer.close()


async def test_a_body_that_never_ends(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_TIMEOUT_S", 0.1)
    received = await answer(gateway, HEAD + LENGTH + b"\r\n" + BODY[:-1])
    assert received.startswith(b"HTTP/1.1 408")
    message = f"only {len(BODY) - 1} bytes of the body came within 0.1 s"
    assert json.loads(received.partition(b"\r\n\r\n")[2])["error"]["message"] == message
