"""Connections end, whatever the client does or leaves undone, and there is a limit to them."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import resource
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from briton_server import answer, http_protocol, http_server, http_transport
from tests.fake_executor import FAKE_INFO, FakeExecutor
from tests.server import running as running_module
from tests.server.conftest import Serve
from tests.server.raw_http import BODY, LENGTH, POST, REQUEST, Connection, connect
from tests.server.running import MODEL, RunningGateway

SHORT_S = 0.3


async def until(condition: Callable[[], bool]) -> None:
    """Return once it holds; fail after ten seconds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to be")


def post(path: str, **fields: Any) -> bytes:
    """A whole request."""
    content = json.dumps({"model": MODEL, **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


ENDLESS = {"prompt": "hi", "n": 16, "max_tokens": 2000, "ignore_eos": True}


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes little of an answer that nobody reads."""

    def listen(host: str, port: int) -> socket.socket:
        listener = http_server.listen(host, port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return listener

    monkeypatch.setattr(running_module, "listen", listen)


@contextlib.asynccontextmanager
async def slow_reader(gateway: RunningGateway) -> AsyncIterator[socket.socket]:
    """A client with a small buffer that asks for a stream and reads nothing of it."""
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, (host, int(port)))
        await loop.sock_sendall(client, post("/v1/completions", stream=True, logprobs=20, **ENDLESS))
        yield client


@pytest.mark.usefixtures("small_buffers")
async def test_who_reads_nothing_is_ended(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request stayed open until the client left, long after the engine was done."""
    monkeypatch.setattr(http_protocol, "SEND_TIMEOUT_S", SHORT_S)
    executor = FakeExecutor(FAKE_INFO, step_s=0.001)
    async with serve(executor, request_timeout_s=None) as running, slow_reader(running):
        await until(lambda: bool(executor.submitted))
        await until(lambda: running.gateway.readiness.num_open == 0)
        await until(lambda: executor.open_requests() == [])
        assert "briton_disconnects_total 1.0" in (await running.http.get("/metrics")).text


@pytest.mark.usefixtures("small_buffers")
async def test_a_stream_that_is_not_read_ends_soon_after_its_deadline(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Although the client reads a little now and then."""
    monkeypatch.setattr(answer, "READ_GRACE_S", SHORT_S)
    executor = FakeExecutor(FAKE_INFO, step_s=0.001)
    async with serve(executor, request_timeout_s=1.0) as running, slow_reader(running) as client:
        await until(lambda: bool(executor.submitted))

        async def read_a_little() -> None:
            with contextlib.suppress(OSError):
                while True:
                    await asyncio.get_running_loop().sock_recv(client, 64)
                    await asyncio.sleep(0.05)

        reading = asyncio.create_task(read_a_little())
        await until(lambda: running.gateway.readiness.num_open == 0)
        assert executor.open_requests() == []
        reading.cancel()
    assert [record.message for record in caplog.records if "has not read its stream" in record.message]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.usefixtures("small_buffers")
async def test_who_reads_again_is_not_ended(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full buffer that is read again and again, each time within the time."""
    monkeypatch.setattr(http_protocol, "SEND_TIMEOUT_S", 1.0)
    pauses: list[float] = []
    pause_writing = http_protocol.GatewayProtocol.pause_writing

    def noted(self: http_protocol.GatewayProtocol) -> None:
        pauses.append(asyncio.get_running_loop().time())
        pause_writing(self)

    monkeypatch.setattr(http_protocol.GatewayProtocol, "pause_writing", noted)
    executor = FakeExecutor(FAKE_INFO, step_s=0.002)
    async with serve(executor) as running, slow_reader(running) as client:
        await until(lambda: bool(pauses))
        received = b""
        while data := await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1 << 20), 10):
            received = received[-100:] + data
            if b"data: [DONE]" in received:
                break
        assert asyncio.get_running_loop().time() - pauses[0] > 1.0, "it took longer than the time of one wait"
        assert b"data: [DONE]" in received


@pytest.mark.usefixtures("small_buffers")
async def test_what_is_left_unread_at_the_close_is_dropped(
    serve: Serve, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole answer that is never read: its connection is closed after keep-alive, and then it ends."""
    monkeypatch.setattr(http_server, "KEEP_ALIVE_S", 0.1)
    monkeypatch.setattr(http_transport, "FLUSH_TIMEOUT_S", SHORT_S)
    executor.script = lambda request, index: [ord("x")] * 2000
    async with serve(executor) as running:
        server_connections = running.server.server_state.connections
        host, _, port = running.url.removeprefix("http://").partition(":")
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, (host, int(port)))
            request = post("/v1/completions", prompt="hi", n=16, max_tokens=1900, logprobs=20)
            await loop.sock_sendall(client, request)
            await until(lambda: len(executor.submitted) == 1)
            await running.http.aclose()
            await until(lambda: not server_connections)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (POST + b"Content-Length: 99999999\r\n\r\n", 413),
        (b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", 404),
        (b"PUT /live HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n", 405),
        (b"POST /live HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n", 405),
    ],
    ids=["413", "404", "405", "405 in chunks"],
)
async def test_an_answer_before_the_end_of_the_body_is_the_last(
    gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch, request_: bytes, status: int
) -> None:
    """The rest of the body was read for ever."""
    monkeypatch.setattr(http_transport, "LINGER_S", SHORT_S)
    async with connect(gateway) as connection:
        await connection.send(request_)

        async def dribble() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    await connection.send(b"{", pause_s=0.02)

        dribbling = asyncio.create_task(dribble())
        answer = await connection.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        await asyncio.wait_for(dribbling, 10)


async def test_a_client_in_the_middle_of_its_body_is_not_reset_at_once(gateway: RunningGateway) -> None:
    """It has time to finish what it sends and to read why it was refused."""
    async with connect(gateway) as connection:
        await connection.send(POST + b"Content-Length: 99999999\r\n\r\n")
        await asyncio.sleep(0.1)
        await connection.send(*[b"x" * 100_000] * 5)
        assert (await connection.answer()).status == 413
        assert await connection.rest() == b""


async def test_an_answer_after_the_end_of_the_body_is_not_the_last(gateway: RunningGateway) -> None:
    async with connect(gateway) as connection:
        for request, status in (
            (b"POST /nowhere HTTP/1.1\r\nHost: x\r\n" + LENGTH + b"\r\n" + BODY, 404),
            (POST + b"Content-Length: 1\r\n\r\n{", 400),
            (get("/live", "PUT"), 405),
            (REQUEST, 200),
        ):
            await connection.send(request)
            answer = await connection.answer()
            assert (answer.status, answer.headers.get("connection")) == (status, None)


@pytest.mark.parametrize("later", [(), (REQUEST, REQUEST)], ids=["at once", "in two steps"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_with_requests_in_the_pipeline(
    serve: Serve, stream: bool, later: tuple[bytes, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """uvicorn told the newest request alone, and the first went on in the engine."""
    executor = FakeExecutor(FAKE_INFO, step_s=0.02)
    async with serve(executor) as running:
        endless = {**ENDLESS, "n": 1, "stream": stream}
        async with connect(running) as connection:
            await connection.send(post("/v1/completions", **endless) + REQUEST, *later)
            await until(lambda: bool(executor.open_requests()))
            await asyncio.sleep(0.1)
        await until(lambda: bool(executor.cancelled) and executor.open_requests() == [])
        await until(lambda: running.gateway.readiness.num_open == 0)
        assert len(executor.submitted) == 1, "what waited behind it is gone too"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
@pytest.mark.parametrize("num_bytes", [70_000, 1_000_000])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_with_much_in_the_pipeline(
    serve: Serve, stream: bool, num_bytes: int, reset: bool
) -> None:
    """Nobody read what was beyond 64 KiB ahead, so nobody came to its end, and the request ran to its own."""
    executor = FakeExecutor(FAKE_INFO, step_s=0.02)
    async with serve(executor) as running:
        endless = {**ENDLESS, "n": 1, "stream": stream}
        async with connect(running) as connection:
            await connection.send(post("/v1/completions", **endless))
            await until(lambda: bool(executor.open_requests()))
            await connection.send((REQUEST * (num_bytes // len(REQUEST) + 1))[:num_bytes], pause_s=0.1)
            assert executor.cancelled == []
            if reset:
                connection.reset()
        await until(lambda: bool(executor.cancelled) and executor.open_requests() == [])
        await until(lambda: running.gateway.readiness.num_open == 0)
        assert len(executor.submitted) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_who_sends_too_much_ahead_gets_one_answer(serve: Serve, stream: bool) -> None:
    """The whole answer that is under way, and the end of the connection: the rest is not looked at."""
    executor = FakeExecutor(FAKE_INFO, step_s=0.02)
    async with serve(executor) as running, connect(running) as connection:
        await connection.send(post("/v1/completions", prompt="hi", max_tokens=16, stream=stream) + REQUEST * 2000)
        received = await connection.rest()
        assert received.startswith(b"HTTP/1.1 200")
        assert received.count(b"HTTP/1.1 ") == 1
        assert b"\r\nconnection: close\r\n" in received.lower()
        assert received.endswith(b"0\r\n\r\n" if stream else b"}")
        assert len(executor.submitted) == 1


async def test_who_sends_without_end_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "MAX_DISCARDED_BYTES", 100_000)
    executor = FakeExecutor(FAKE_INFO, step_s=0.02)
    async with serve(executor) as running, connect(running) as connection:
        await connection.send(post("/v1/completions", **{**ENDLESS, "n": 1}))
        await until(lambda: bool(executor.open_requests()))
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                await connection.send(REQUEST * 100, pause_s=0.01)
        await until(lambda: bool(executor.cancelled) and executor.open_requests() == [])


async def test_a_connection_without_a_request_is_kept_for_a_while(
    serve: Serve, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert http_server.KEEP_ALIVE_S > 60, "load balancers close idle connections after 60 s, and should be the first"
    monkeypatch.setattr(http_server, "KEEP_ALIVE_S", SHORT_S)
    async with serve(executor) as running, connect(running) as connection:
        for _ in range(3):
            await connection.send(REQUEST)
            assert (await connection.answer()).status == 200
        assert await asyncio.wait_for(connection.rest(), 3) == b"", "uvicorn's own 5 s do not count"


async def test_no_header_tells_what_serves(gateway: RunningGateway) -> None:
    for request in (REQUEST, get("/nowhere"), get("/live")):
        async with connect(gateway) as connection:
            await connection.send(request)
            assert "server" not in (await connection.answer()).headers


async def test_connections_beyond_the_limit_get_503(serve: Serve, executor: FakeExecutor) -> None:
    """But for /live and /ready, whose callers would restart, or send others away."""
    async with serve(executor, max_connections=3) as running, contextlib.AsyncExitStack() as stack:
        held = [await stack.enter_async_context(connect(running)) for _ in range(2)]  # and httpx's own
        for connection in held:
            await connection.send(REQUEST)
            assert (await connection.answer()).status == 200
        for request in (REQUEST, get("/v1/models"), get("/health"), REQUEST[:-3]):
            async with connect(running) as connection:
                await connection.send(request)
                answer = await connection.answer()
                assert (answer.status, answer.headers["connection"]) == (503, "close")
                assert int(answer.headers["retry-after"]) >= 1
                assert "3 connections" in answer.json()["error"]["message"]
                assert "briton.max_connections" in answer.json()["error"]["message"]
        for path in ("/live", "/ready"):
            for method in ("GET", "HEAD"):
                async with connect(running) as connection:
                    await connection.send(get(path, method))
                    answer = await connection.answer(has_body=method == "GET")
                    assert (answer.status, answer.headers["connection"]) == (200, "close")
                    assert await connection.rest() == b""
        await held[0].send(REQUEST)
        assert (await held[0].answer()).status == 200, "who was there first is served on"
        text = (await running.http.get("/metrics")).text
        assert "briton_connections 3.0" in text


async def test_connections_beyond_the_reserve_are_not_taken(
    serve: Serve, executor: FakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "RESERVED_CONNECTIONS", 2)
    async with serve(executor, max_connections=1) as running, contextlib.AsyncExitStack() as stack:
        opened: list[Connection] = [await stack.enter_async_context(connect(running)) for _ in range(3)]
        with contextlib.suppress(ConnectionError):
            assert await opened[-1].rest() == b""
        await opened[0].send(get("/live"))
        assert (await opened[0].answer()).status == 200


@pytest.mark.parametrize(
    ("limits", "allowed", "set_to"),
    [
        ((1024, 1_000_000), 4096, 4096 + 64 + 128),
        ((1024, 1024), 1024 - 64 - 128, 1024),
        ((1024, resource.RLIM_INFINITY), 4096, 4096 + 64 + 128),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), 4096, None),
        ((100_000, 100_000), 4096, None),
        ((64, 64), 1, 64),
    ],
)
def test_files_are_allowed_for_connections(
    monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], allowed: int, set_to: int | None
) -> None:
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, wanted: made.append(wanted))
    assert http_server.allow_connections(4096) == allowed
    assert made == ([] if set_to is None else [(set_to, limits[1])])


@pytest.mark.parametrize(
    "path", ["/live", "/ready", "/health", "/version", "/metrics", "/v1/models", f"/v1/models/{MODEL}", "/openapi.json"]
)
async def test_head_is_answered_as_get_is_without_the_body(gateway: RunningGateway, path: str) -> None:
    """RFC 9110, 9.3.2: load balancers probe so. On a connection that goes on."""
    async with connect(gateway) as connection:
        await connection.send(get(path, "HEAD") + get("/live"))
        head = await connection.answer(has_body=False)
        assert head.status == 200
        assert int(head.headers["content-length"]) > 0
        assert (await connection.answer()).json() == {"status": "ok"}


async def test_head_of_what_cannot_be_got(gateway: RunningGateway) -> None:
    response = await gateway.http.head("/v1/chat/completions")
    assert (response.status_code, response.headers["allow"], response.text) == (405, "POST", "")
    assert (await gateway.http.head("/nowhere")).status_code == 404
    gateway.gateway.readiness.drain()
    assert (await gateway.http.head("/ready")).status_code == 503


async def test_an_http_1_0_client_gets_no_chunks(gateway: RunningGateway) -> None:
    """RFC 9112, 6.1: it does not know them. The end of the stream is that of the connection."""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
    async with connect(gateway) as connection:
        await connection.send(b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head, _, rest = (await connection.rest()).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"transfer-encoding" not in head.lower()
    assert rest.startswith(b"data: {")
    assert rest.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "identity, gzip"])
async def test_an_encoded_body_is_refused_with_what_is_accepted(gateway: RunningGateway, encoding: str) -> None:
    response = await gateway.post("/v1/chat/completions", gzip.compress(BODY), **{"content-encoding": encoding})
    assert response.status_code == 415
    assert response.headers["accept-encoding"] == "identity"
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "unsupported_content_encoding")
    assert repr(encoding) in error["message"]
    assert "identity" in error["message"]


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
async def test_a_body_that_says_that_it_is_not_encoded(gateway: RunningGateway, encoding: str) -> None:
    response = await gateway.post("/v1/chat/completions", BODY, **{"content-encoding": encoding})
    assert response.status_code == 200
