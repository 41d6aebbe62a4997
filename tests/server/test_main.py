"""The gateway as a process: socket, signals, exit codes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fake_engine import run_fake_engine
from tests.fake_executor import FakeExecutor
from tests.processes import free_port
from tests.server.conftest import says
from tests.server.scripted_engine import ScriptedEngine, run_scripted_engine, waits

PROGRAM = """
import logging, sys
from pathlib import Path
from briton.config.loader import load_config
from briton_server.main import run_gateway
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
config, tokenizer_dir, engine, port = sys.argv[1:]
sys.exit(run_gateway(load_config(Path(config)), tokenizer_dir=Path(tokenizer_dir), engine_address=engine,
                     host="127.0.0.1", port=int(port)))
"""
CONFIG = """
model_name: fake
trt_llm:
  build:
    base_model: decoder
    checkpoint_repository: {source: LOCAL, repo: /nowhere}
briton:
  drain_timeout_s: %s
"""


@asynccontextmanager
async def process(
    tmp_path: Path, tokenizer_dir: Path, engine: str, port: int, drain_timeout_s: float = 10
) -> AsyncIterator[asyncio.subprocess.Process]:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG % drain_timeout_s)
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", PROGRAM, str(config), str(tokenizer_dir), engine, str(port)),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def wait_for(client: httpx.AsyncClient, path: str, status: int) -> None:
    for _ in range(500):
        try:
            if (await client.get(path)).status_code == status:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.03)
    raise AssertionError(f"{path} never said {status}")


async def ended(running: asyncio.subprocess.Process) -> tuple[int | None, str]:
    _, errors = await asyncio.wait_for(running.communicate(), 15)
    return running.returncode, errors.decode()


@pytest.mark.slow
async def test_sigterm_drains(tmp_path: Path, tokenizer_dir: Path) -> None:
    """Not ready at once, nothing new accepted, the open stream finishes, exit code 0."""
    executor = FakeExecutor(script=says("x" * 60), step_s=0.03)
    port = free_port()
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with (
        run_fake_engine(executor) as engine,
        process(tmp_path, tokenizer_dir, engine.address, port) as running,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
    ):
        await wait_for(client, "/ready", 200)
        open_stream = asyncio.create_task(client.post("/v1/chat/completions", json=body))
        while not executor.submitted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        os.kill(running.pid, signal.SIGTERM)
        await wait_for(client, "/ready", 503)
        assert (await client.get("/live")).status_code == 200
        assert (await client.post("/v1/chat/completions", json=body)).status_code == 503
        response = await open_stream
        told = re.findall(r'"content":"(x*)"', response.text)  # one of several tokens where this machine is slow
        assert "".join(told) == "x" * 60
        assert response.text.endswith("data: [DONE]\n\n")
        code, errors = await ended(running)
    assert code == 0
    assert "Traceback" not in errors
    assert "SIGTERM: draining, 1 open requests" in errors


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_what_takes_longer_than_the_drain_timeout_is_ended(
    tmp_path: Path, tokenizer_dir: Path, path: str
) -> None:
    scripted = ScriptedEngine(waits)
    port = free_port()
    async with (
        run_scripted_engine(scripted) as address,
        process(tmp_path, tokenizer_dir, address, port, drain_timeout_s=0.3) as running,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
    ):
        await wait_for(client, "/ready", 200)
        body = {"messages": [{"role": "user", "content": "hi"}], "prompt": ["a", "b"]}
        asked = asyncio.create_task(client.post(path, json=body))
        while not scripted.requests:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        running.terminate()
        response = await asked
        code, errors = await ended(running)
        await asyncio.wait_for(scripted.cancelled.wait(), 1)
    assert response.status_code == 503
    assert "retry-after" in response.headers
    assert code == 0
    assert "Traceback" not in errors


async def test_it_starts_without_an_engine_and_ends_at_once_when_idle(tmp_path: Path, tokenizer_dir: Path) -> None:
    port = free_port()
    async with (
        process(tmp_path, tokenizer_dir, f"127.0.0.1:{free_port()}", port) as running,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
    ):
        await wait_for(client, "/live", 200)
        assert (await client.get("/ready")).status_code == 503
        running.send_signal(signal.SIGINT)
        code, errors = await ended(running)
    assert code == 0
    assert "Traceback" not in errors


@pytest.mark.parametrize("wrong", ["port", "tokenizer"])
async def test_what_cannot_start_says_why_in_one_line(tmp_path: Path, tokenizer_dir: Path, wrong: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1] if wrong == "port" else free_port()
        directory = tmp_path if wrong == "tokenizer" else tokenizer_dir
        async with process(tmp_path, directory, "127.0.0.1:1", port) as running:
            code, errors = await ended(running)
    assert code == 1
    lines = [line for line in errors.splitlines() if line.startswith("ERROR")]
    assert len(lines) == 1
    assert (f"127.0.0.1:{port}: Address already in use" if wrong == "port" else "tokenizer.json") in lines[0]
    assert "Traceback" not in errors
