"""What clients do below HTTP: upgrades that are offered, heads that are too long, torn, doubtful, or never come."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import pytest

from briton_server import body, http_protocol, http_transport
from briton_server.http_connection import MAX_HEAD_BYTES
from tests.fake_executor import FAKE_INFO, FakeExecutor
from tests.server.conftest import Serve, says
from tests.server.raw_http import BODY, LENGTH, POST, REQUEST, connect, exchange
from tests.server.running import RunningGateway

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
WEBSOCKET = b"upgrade: websocket\r\nconnection: upgrade\r\n"
CLOSE = b"Connection: close\r\n"
MAX = MAX_HEAD_BYTES


def head_of(num_bytes: int, *fields: bytes) -> bytes:
    """The head of a chat request, of exactly so many bytes."""
    begin = POST + LENGTH + b"".join(fields) + b"X-Long: "
    return begin + b"a" * (num_bytes - len(begin) - 4) + b"\r\n\r\n"


def request_line(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET], ids=["h2c", "websocket"])
@pytest.mark.parametrize("cut", [0, 10, 60, 130, -1], ids=lambda cut: f"cut at {cut}")
async def test_an_offered_upgrade_is_declined_and_the_body_kept(
    gateway: RunningGateway, caplog: pytest.LogCaptureFixture, offer: bytes, cut: int
) -> None:
    """However the head is cut into segments. The body was answered as a request of its own: request smuggling."""
    smuggled = request_line("/version")
    head = POST + offer + b"Content-Length: %d\r\n\r\n" % len(smuggled)
    cut = len(head) if cut < 0 else cut
    async with connect(gateway) as connection:
        await connection.send(head[:cut], head[cut:], smuggled)
        first = await connection.answer()
        assert (first.status, first.json()["error"]["code"]) == (400, "invalid_json")
        assert "line 1 column 1" in first.json()["error"]["message"], "the body was read, and is no JSON"
        await connection.send(REQUEST)
        answer = await connection.answer()
        assert (answer.status, answer.json()["object"]) == (200, "chat.completion"), "nothing else was answered"
    assert not [record for record in caplog.records if "upgrade" in record.message], (
        "a line for each of Java's requests"
    )


@pytest.mark.parametrize("num_bytes", [1000, 20_000])
async def test_an_h2c_request_with_a_long_head_is_answered(gateway: RunningGateway, num_bytes: int) -> None:
    """As Java's client sends each of its requests."""
    head = head_of(num_bytes, H2C)
    async with connect(gateway) as connection:
        await connection.send(head[:900], head[900:], BODY[:5], BODY[5:])
        assert (await connection.answer()).status == 200


async def test_an_upgrade_in_a_second_request_and_after_a_blank_line(gateway: RunningGateway) -> None:
    request = POST + H2C + LENGTH + b"\r\n" + BODY
    async with connect(gateway) as connection:
        await connection.send(request + request, b"\r\n" + request, b"\r", b"\n\r\n" + request)
        for _ in range(4):
            assert (await connection.answer()).json()["object"] == "chat.completion"


async def test_pipelined_requests_are_answered_in_order(gateway: RunningGateway) -> None:
    async with connect(gateway) as connection:
        await connection.send(request_line("/version") + REQUEST + request_line("/live") + REQUEST[:-3], REQUEST[-3:])
        first, second, third, fourth = [await connection.answer() for _ in range(4)]
    assert "engine_version" in first.json()
    assert third.json() == {"status": "ok"}
    assert second.json()["object"] == fourth.json()["object"] == "chat.completion"


@pytest.mark.parametrize("cuts", [(), (1,), (MAX // 2,), (MAX - 1,)], ids=str)
@pytest.mark.parametrize(("num_bytes", "status"), [(MAX, 200), (MAX + 1, 431)])
async def test_a_head_is_bounded_exactly(
    gateway: RunningGateway, num_bytes: int, status: int, cuts: tuple[int, ...]
) -> None:
    """In one read or in several: more than the limit is refused, the limit itself is taken."""
    request = head_of(num_bytes) + BODY
    bounds = [0, *cuts, len(request)]
    async with connect(gateway) as connection:
        await connection.send(*(request[a:b] for a, b in itertools.pairwise(bounds)))
        answer = await connection.answer()
        assert answer.status == status
        if status == 431:
            assert answer.json()["error"]["type"] == "invalid_request_error"
            assert str(MAX) in answer.json()["error"]["message"]
            assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("line", [b"X-1: " + b"a" * 20_000 + b"\r\n", b"a" * 20_000], ids=["fields", "one field"])
async def test_a_head_without_end_is_refused_and_the_answer_arrives(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    """Although the client goes on sending: no reset overtakes the answer, and then the connection ends."""
    monkeypatch.setattr(http_transport, "LINGER_S", 0.5)
    async with connect(gateway) as connection:
        await connection.send(POST + b"X: ")

        async def send_on() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await connection.send(line, pause_s=0.001)

        sending = asyncio.create_task(send_on())
        assert (await connection.answer()).status == 431
        await asyncio.wait_for(sending, 10)


DOUBTFUL = {
    "a length and chunks": POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": POST + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n0\r\n\r\n",
    "two lengths": POST + LENGTH + b"Content-Length: 1\r\n\r\n" + BODY,
    "chunks in HTTP/1.0": REQUEST.replace(LENGTH, b"Transfer-Encoding: chunked\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "an unknown coding": REQUEST.replace(LENGTH, b"Transfer-Encoding: gzip, chunked\r\n"),
    "a line that ends in LF alone": REQUEST.replace(b"Host: x\r\n", b"Host: x\n"),
    "a head that ends in LF alone": REQUEST.replace(b"\r\n", b"\n"),
    "a folded field": REQUEST.replace(b"Host: x\r\n", b"Host: x\r\nX: a\r\n Transfer-Encoding: chunked\r\n"),
    "a space before the colon": REQUEST.replace(b"Content-Length:", b"Content-Length :"),
    "no host": REQUEST.replace(b"Host: x\r\n", b""),
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


@pytest.mark.parametrize("request_", DOUBTFUL.values(), ids=DOUBTFUL.keys())
async def test_what_two_servers_could_read_differently_is_refused(gateway: RunningGateway, request_: bytes) -> None:
    received = await exchange(gateway, request_ + request_line("/version"))
    assert received.startswith((b"HTTP/1.1 400", b"HTTP/1.1 501"))
    assert b'"type":"invalid_request_error"' in received
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"engine_version" not in received


async def test_a_broken_chunk_ends_the_request(gateway: RunningGateway) -> None:
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    received = await exchange(gateway, chunked, b"zz\r\n{}\r\n")
    assert received.startswith(b"HTTP/1.1 400")
    assert received.count(b"HTTP/1.1 ") == 1


async def test_a_body_in_chunks_is_read(gateway: RunningGateway) -> None:
    parts = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:7], BODY[7:])) + b"0\r\n\r\n"
    async with connect(gateway) as connection:
        await connection.send(POST + b"Transfer-Encoding: chunked\r\n\r\n", parts[:3], parts[3:])
        assert (await connection.answer()).status == 200


async def test_an_absolute_target_is_taken(gateway: RunningGateway) -> None:
    """RFC 9112, 3.2.2: proxies send it."""
    async with connect(gateway) as connection:
        await connection.send(request_line("http://x/version") + request_line("http://x:80/v1/models?a=http://y/"))
        assert "engine_version" in (await connection.answer()).json()
        assert (await connection.answer()).json()["object"] == "list"


async def test_a_client_that_waits_for_100_continue(gateway: RunningGateway) -> None:
    async with connect(gateway) as connection:
        await connection.send(POST + LENGTH + b"Expect: 100-continue\r\n\r\n")
        assert (await connection.answer()).status == 100
        await connection.send(BODY)
        assert (await connection.answer()).status == 200


async def test_bytes_after_a_request_that_is_the_last_are_ignored(serve: Serve) -> None:
    """Old clients end a body with a line end that they do not count. While the answer is being made, too."""
    request = POST + LENGTH + CLOSE + b"\r\n" + BODY
    async with serve(FakeExecutor(FAKE_INFO, script=says("hi there"), step_s=0.02)) as gateway:
        for tail in ((b"\r\n",), (b"", b"\r\n"), (b"", request_line("/version"))):
            received = await exchange(gateway, request + tail[0], *tail[1:])
            assert received.startswith(b"HTTP/1.1 200")
            assert received.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("begin", [b"", POST, b"\r\n"], ids=["nothing", "a part", "a blank line"])
async def test_a_head_that_never_comes(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, begin: bytes) -> None:
    monkeypatch.setattr(http_protocol, "HEADER_TIMEOUT_S", 0.1)
    assert await exchange(gateway, begin) == b""


@pytest.mark.parametrize("begin", [POST, b"\r\n"], ids=["a part", "a blank line"])
async def test_the_second_head_of_a_connection_has_its_own_time(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    """In a segment of its own, or at the end of the first request's."""
    async with connect(gateway) as connection:
        monkeypatch.setattr(http_protocol, "HEADER_TIMEOUT_S", 0.2)
        await connection.send(REQUEST)
        assert (await connection.answer()).status == 200
        await asyncio.sleep(0.4)  # between requests keep-alive counts
        await connection.send(REQUEST + POST)
        assert (await connection.answer()).status == 200
        assert await connection.rest() == b""
    async with connect(gateway) as connection:
        await connection.send(REQUEST)
        assert (await connection.answer()).status == 200
        await connection.send(begin)
        assert await connection.rest() == b""


async def test_the_clock_of_a_head_is_short_and_stops_with_its_connection(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever holds connections open without a request takes them from others: a minute is the most."""
    made: list[asyncio.TimerHandle] = []
    remaining_s: list[float] = []
    start = http_protocol.GatewayProtocol.connection_made

    def connection_made(self: http_protocol.GatewayProtocol, transport: asyncio.Transport) -> None:
        start(self, transport)
        assert self.header_timer is not None
        remaining_s.append(self.header_timer.when() - asyncio.get_running_loop().time())
        made.append(self.header_timer)

    monkeypatch.setattr(http_protocol.GatewayProtocol, "connection_made", connection_made)
    async with connect(gateway) as connection:
        await connection.send(b"POST")
    for _ in range(200):
        if made and made[0].cancelled():
            break
        await asyncio.sleep(0.01)
    assert made
    assert made[0].cancelled()
    assert 5 < remaining_s[0] <= 60, "slow networks need seconds"


async def test_a_body_that_never_ends(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_TIMEOUT_S", 0.1)
    async with connect(gateway) as connection:
        await connection.send(POST + LENGTH + b"\r\n" + BODY[:-1])
        answer = await connection.answer()
        assert answer.status == 408
        message = f"only {len(BODY) - 1} bytes of the body came within 0.1 s"
        assert answer.json()["error"]["message"] == message
        assert await connection.rest() == b""
