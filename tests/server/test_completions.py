"""POST /v1/completions through the official client, over the fake executor."""

from __future__ import annotations

from typing import Any

import pytest
from openai import AsyncOpenAI

from briton_server.routers.completions import DEFAULT_MAX_TOKENS
from tests.fake_executor import FakeExecutor
from tests.server.conftest import Serve, says
from tests.server.running import MODEL, RunningGateway

TEXT = "Hello, wörld 🌍!"


async def test_every_shape_of_prompt(client: AsyncOpenAI, executor: FakeExecutor) -> None:
    shapes: list[Any] = ["abc", ["abc"], ["abc", "d"], [97, 98, 99], [[97, 98, 99], [100]]]
    for shape, num_prompts in zip(shapes, (1, 1, 2, 1, 2), strict=True):
        executor.submitted.clear()
        answer = await client.completions.create(model=MODEL, prompt=shape, max_tokens=100)
        assert [(c.index, c.text, c.finish_reason) for c in answer.choices] == [
            (i, TEXT, "stop") for i in range(num_prompts)
        ]
        prompts = sorted(request.prompt_token_ids for request in executor.submitted)
        assert prompts == [(97, 98, 99), (100,)][:num_prompts]
        assert answer.usage is not None
        assert answer.usage.prompt_tokens == sum(map(len, prompts))
        assert answer.object == "text_completion"


async def test_choices_of_several_prompts_are_numbered_prompt_by_prompt(serve: Serve) -> None:
    def script(request: Any, index: int) -> list[int]:
        return [request.prompt_token_ids[0], ord("0") + index]

    async with serve(FakeExecutor(script=script)) as running, running.openai() as client:
        answer = await client.completions.create(model=MODEL, prompt=["a", "b"], n=2)
        assert [(c.index, c.text) for c in answer.choices] == [(0, "a0"), (1, "a1"), (2, "b0"), (3, "b1")]
        async with running.openai(strict=False) as lax:
            stream = await lax.completions.create(model=MODEL, prompt=["a", "b"], n=2, stream=True)
            chunks = [chunk async for chunk in stream]
    assert [chunk.choices[0].index for chunk in chunks[:4]] == [0, 1, 2, 3]
    texts = [""] * 4
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["a0", "a1", "b0", "b1"]
    assert sorted(c.choices[0].index for c in chunks if c.choices[0].finish_reason == "stop") == [0, 1, 2, 3]


async def test_a_stream_with_usage(gateway: RunningGateway) -> None:
    """Not in strict mode: it refuses the finish_reason null that OpenAI itself sends in every chunk but the last."""
    async with gateway.openai(strict=False) as client:
        stream = await client.completions.create(
            model=MODEL, prompt="x", max_tokens=100, stream=True, stream_options={"include_usage": True}
        )
        *chunks, usage = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == TEXT
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.prompt_tokens == 1
    assert len({(chunk.id, chunk.created) for chunk in (*chunks, usage)}) == 1


async def test_sixteen_tokens_are_the_default(client: AsyncOpenAI, executor: FakeExecutor) -> None:
    executor.script = says("x" * 50)
    answer = await client.completions.create(model=MODEL, prompt="x")
    assert answer.choices[0].text == "x" * DEFAULT_MAX_TOKENS
    assert answer.choices[0].finish_reason == "length"


async def test_the_configured_default_comes_before_that(serve: Serve) -> None:
    executor = FakeExecutor(script=says("x" * 50))
    async with serve(executor, default_max_tokens=5) as running, running.openai() as client:
        completion = await client.completions.create(model=MODEL, prompt="x")
        chat = await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}])
    assert (completion.choices[0].text, chat.choices[0].message.content) == ("xxxxx", "xxxxx")


@pytest.mark.parametrize("prompt", ["ab", [97, 98]])
async def test_echo(gateway: RunningGateway, prompt: Any) -> None:
    async with gateway.openai() as client:
        answer = await client.completions.create(model=MODEL, prompt=prompt, echo=True, max_tokens=100)
    assert answer.choices[0].text == f"ab{TEXT}"
    async with gateway.openai(strict=False) as client:
        stream = await client.completions.create(model=MODEL, prompt=prompt, echo=True, max_tokens=100, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == f"ab{TEXT}"


async def test_legacy_logprobs(serve: Serve) -> None:
    async with serve(FakeExecutor(script=says("aé!"))) as running, running.openai() as client:
        answer = await client.completions.create(model=MODEL, prompt="x", logprobs=2)
        none = await client.completions.create(model=MODEL, prompt="x", logprobs=0)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "bytes:\\xc3", "bytes:\\xa9", "!"]
    assert logprobs.text_offset == [0, 1, 1, 2]
    assert logprobs.token_logprobs is not None
    assert len(logprobs.token_logprobs) == 4
    assert logprobs.top_logprobs is not None
    for token, top in zip(logprobs.tokens, logprobs.top_logprobs, strict=True):
        assert token in top, "the sampled token is always there"
        assert len(top) in (2, 3)
    assert none.choices[0].logprobs is not None
    assert [len(top) for top in none.choices[0].logprobs.top_logprobs or ()] == [1, 1, 1, 1]
