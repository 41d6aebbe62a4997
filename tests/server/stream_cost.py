"""What a streamed token costs the gateway: `python -m tests.server.stream_cost [--streams 16] [--tokens 600]`.

Three processes: an engine over the fake executor that gives each stream a token every step, the gateway, and a client
that reads and counts. Prints the CPU time of the gateway process (user and system, all threads) a streamed token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import uvloop

from briton.text.tokenizer import Tokenizer
from tests.fake_engine import run_fake_engine, write_tokenizer
from tests.fake_executor import FAKE_INFO, FakeExecutor
from tests.server.running import MODEL, run_gateway, settings_of


def serve_engine(pipe: Connection, directory: Path, step_s: float) -> None:
    """The engine process, until the pipe says so."""

    async def run() -> None:
        executor = FakeExecutor(replace(FAKE_INFO, tokenizer_hash=Tokenizer.load(directory).hash), step_s=step_s)
        async with run_fake_engine(executor) as engine:
            pipe.send(engine.address)
            await asyncio.to_thread(pipe.recv)

    uvloop.run(run())


def serve_gateway(pipe: Connection, directory: Path, address: str) -> None:
    """The gateway process; each message it gets asks for its CPU time so far, in seconds, and None ends it."""

    async def run() -> None:
        async with run_gateway(settings_of(directory, address)) as running:
            pipe.send(running.url)
            while await asyncio.to_thread(pipe.recv) is not None:
                pipe.send(time.process_time())

    uvloop.run(run())


async def read_streams(url: str, num_streams: int, num_tokens: int) -> int:
    """Read all streams to their ends; how many chunks with text there were."""

    async def read(client: httpx.AsyncClient, index: int) -> int:
        body = {
            "model": MODEL,
            "stream": True,
            "max_tokens": num_tokens,
            "ignore_eos": True,
            "messages": [{"role": "user", "content": f"stream {index}"}],
        }
        count = 0
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            async for data in response.aiter_bytes():
                count += data.count(b'"delta":{"content":')
        return count

    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=None)) as client:
        return sum(await asyncio.gather(*(read(client, index) for index in range(num_streams))))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--step-ms", type=float, default=16.0)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    directory = write_tokenizer(Path(tempfile.mkdtemp()))
    engine_pipe, engine_end = context.Pipe()
    gateway_pipe, gateway_end = context.Pipe()
    engine = context.Process(target=serve_engine, args=(engine_end, directory, options.step_ms / 1000))
    engine.start()
    gateway = context.Process(target=serve_gateway, args=(gateway_end, directory, engine_pipe.recv()))
    gateway.start()
    with closing(engine_pipe), closing(gateway_pipe):
        url = gateway_pipe.recv()
        asyncio.run(read_streams(url, options.streams, 32))  # warm-up
        gateway_pipe.send("time")
        before, started = gateway_pipe.recv(), time.monotonic()
        count = asyncio.run(read_streams(url, options.streams, options.tokens))
        seconds = time.monotonic() - started
        gateway_pipe.send("time")
        cpu_s = gateway_pipe.recv() - before
        gateway_pipe.send(None)
        engine_pipe.send(None)
        gateway.join()
        engine.join()
    print(
        json.dumps(
            {
                "streams": options.streams,
                "chunks": count,
                "tokens_per_s": round(options.streams * options.tokens / seconds),
                "gateway_cpu_us_per_token": round(cpu_s / (options.streams * options.tokens) * 1e6, 1),
                "gateway_cores": round(cpu_s / seconds, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
