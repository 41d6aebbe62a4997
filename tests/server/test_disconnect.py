"""A client that goes away: the executor is told within half a second, whatever was being waited for."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from tests.fake_executor import FakeExecutor
from tests.server.conftest import Serve, says
from tests.server.running import MODEL

WITHIN_S = 0.5
CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "ignore_eos": True}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "hi", "ignore_eos": True, "max_tokens": 2000}


async def opened(executor: FakeExecutor, count: int) -> None:
    """Return when so many requests are open."""
    for _ in range(500):
        if len(executor.open_requests()) >= count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the requests never reached the executor")


async def cancelled(executor: FakeExecutor, count: int) -> float:
    """Seconds until the executor was told of so many cancels and holds nothing more."""
    started = time.monotonic()
    while len(executor.cancelled) < count or executor.open_requests():
        assert time.monotonic() - started < 5, "the executor was never told"
        await asyncio.sleep(0.01)
    return time.monotonic() - started


@pytest.mark.timing
@pytest.mark.parametrize(
    ("path", "body", "num_calls"),
    [
        ("/v1/chat/completions", {**CHAT, "stream": True}, 1),
        ("/v1/chat/completions", CHAT, 1),
        ("/v1/chat/completions", {**CHAT, "stop": "never", "n": 2}, 1),
        ("/v1/completions", {**TEXT, "stream": True, "prompt": ["a", "b", "c"]}, 3),
        ("/v1/completions", {**TEXT, "prompt": ["a", "b"]}, 2),
    ],
)
async def test_a_client_that_leaves_while_tokens_come(
    serve: Serve, path: str, body: dict[str, Any], num_calls: int
) -> None:
    executor = FakeExecutor(step_s=0.02)
    async with serve(executor) as running:
        async with httpx.AsyncClient(base_url=running.url, timeout=10) as client:
            task = asyncio.create_task(client.post(path, json=body))
            await opened(executor, num_calls)
            await asyncio.sleep(0.1)
            task.cancel()
        assert await cancelled(executor, num_calls) < WITHIN_S
        for _ in range(100):
            if running.gateway.readiness.num_open == 0:
                break
            await asyncio.sleep(0.01)
        metrics = (await running.http.get("/metrics")).text
        assert "briton_disconnects_total 1.0" in metrics
        assert "briton_open_requests 0.0" in metrics


@pytest.mark.timing
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_token(serve: Serve, stream: bool) -> None:
    executor = FakeExecutor(step_s=0.8)  # nobody hears of a token before the client is gone
    async with serve(executor) as running:
        async with httpx.AsyncClient(base_url=running.url, timeout=10) as client:
            task = asyncio.create_task(client.post("/v1/chat/completions", json={**CHAT, "stream": stream}))
            await opened(executor, 1)
            task.cancel()
        assert await cancelled(executor, 1) < WITHIN_S
        assert 'status="499"' in (await running.http.get("/metrics")).text


@pytest.mark.timing
async def test_a_stop_string_ends_the_request_in_the_engine_too(serve: Serve) -> None:
    executor = FakeExecutor(step_s=0.01, script=says("abcSTOP" + "x" * 1900))
    async with serve(executor) as running:
        response = await running.post("/v1/chat/completions", {**CHAT, "stop": "STOP"})
        assert response.json()["choices"][0]["message"]["content"] == "abc"
        assert await cancelled(executor, 1) < WITHIN_S


async def test_others_go_on_when_one_leaves(serve: Serve) -> None:
    executor = FakeExecutor(step_s=0.005, script=says("x" * 100))
    async with serve(executor) as running:
        staying = asyncio.create_task(running.post("/v1/chat/completions", {**CHAT, "ignore_eos": False}))
        async with httpx.AsyncClient(base_url=running.url, timeout=10) as client:
            leaving = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
            await opened(executor, 2)
            leaving.cancel()
        assert (await staying).json()["choices"][0]["message"]["content"] == "x" * 100


async def test_a_client_that_leaves_in_the_middle_of_its_body(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async with serve(FakeExecutor()) as running:
        _, writer = await asyncio.open_connection("127.0.0.1", running.http.base_url.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()
        for _ in range(100):
            if 'status="499"' in (text := (await running.http.get("/metrics")).text):
                break
            await asyncio.sleep(0.01)
        assert 'status="499"' in text
        assert "briton_open_requests 0.0" in text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
