"""POST /v1/chat/completions through the official client in strict mode: HTTP -> gRPC -> engine -> fake executor."""

from __future__ import annotations

import json

import pytest
from openai import AsyncOpenAI

from tests.fake_executor import FAKE_INFO, FakeExecutor
from tests.server.conftest import Serve, says
from tests.server.running import MODEL, RunningGateway

HI = [{"role": "user", "content": "hi"}]
TEXT = "Hello, wörld 🌍!"


async def test_an_answer_in_one_piece(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=HI)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == len(TEXT.encode()) + 1


async def test_a_stream(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [c async for c in stream]
    for c in chunks:
        print(c.model_dump_json(exclude_none=True))
