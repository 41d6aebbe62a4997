"""Bad input: each gets its status, with the field named, and a request beside it stays unharmed."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import pytest_asyncio

from tests.fake_executor import FAKE_INFO, FakeExecutor
from tests.server.conftest import Serve, says
from tests.server.running import MODEL, RunningGateway

HI: Any = [{"role": "user", "content": "hi"}]
SCHEMA = "response_format.json_schema.schema"


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": HI, **fields}


def text(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "hi", **fields}


def json_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


# body -> the field named, and what the message says of the limit
CHAT: list[tuple[Any, str | None, str]] = [
    (b"{", None, "not valid JSON"),
    (b"", None, "not valid JSON"),
    (b"[1]", None, "JSON object"),
    (b"\xff\xfe", None, "not valid JSON"),
    (b"[" * 100_000, None, "recursion limit"),
    (b'{"messages": "\\ud800"}', None, "not valid JSON"),
    (b'{"messages": [{"role": "user", "content": "\x00"}]}', None, "control character"),
    ({"model": MODEL}, "messages", "required"),
    (chat(messages=[]), "messages", "at least 1"),
    (chat(messages="hi"), "messages", "list"),
    (chat(messages=[1]), "messages[0]", "object"),
    (chat(messages=[{"content": "x"}]), "messages[0].role", "required"),
    (chat(messages=[{"role": "king", "content": "x"}]), "messages[0].role", "'king'"),
    (chat(messages=[*HI, {"role": "robot", "content": "x"}]), "messages[1].role", "'robot'"),
    (chat(messages=[{"role": "user"}]), "messages[0].content", "required"),
    (chat(messages=[{"role": "user", "content": 5}]), "messages[0].content", "string"),
    (chat(messages=[{"role": "user", "content": []}]), "messages[0].content", "at least 1"),
    (chat(messages=[{"role": "user", "content": "a\0b"}]), "messages[0].content", "NUL"),
    (
        chat(messages=[{"role": "user", "content": [{"type": "text", "text": "\0"}]}]),
        "messages[0].content[0].text",
        "NUL",
    ),
    (
        chat(messages=[{"role": "user", "content": [{"type": "text", "text": ""}, {"type": "image_url"}]}]),
        "messages[0].content[1].type",
        "'image_url'",
    ),
    (chat(messages=[{"role": "user", "content": ["x"]}]), "messages[0].content[0]", "object"),
    (chat(messages=[{"role": "user", "content": "x" * 5000}]), "messages", "2048 tokens"),
    (chat(messages=[{"role": "user", "content": "x" * 30_000}]), "messages", "30000 characters"),
    (chat(messages=HI * 2049), "messages", "2048"),
    (
        chat(messages=[{"role": "user", "content": [{"type": "text", "text": ""}] * 2049}]),
        "messages[0].content",
        "2048",
    ),
    (
        chat(messages=[{"role": "assistant", "content": "", "tool_calls": [{}] * 129}]),
        "messages[0].tool_calls",
        "128",
    ),
    (chat(messages=[{"role": "assistant", "tool_calls": [1] * 9000}]), "messages[0].tool_calls[0]", "dictionary"),
    (chat(prediction={"type": "content", "content": "x" * 30_000}), "prediction.content", "30000 characters"),
    (chat(model=7), "model", "string"),
    (chat(max_tokens=0), "max_tokens", "greater than or equal to 1"),
    (chat(max_tokens=-5), "max_tokens", "greater than or equal to 1"),
    (chat(max_tokens=2**40), "max_tokens", "4294967295"),
    (chat(max_tokens="5"), "max_tokens", "integer"),
    (chat(max_tokens=True), "max_tokens", "integer"),
    (chat(max_tokens=5, max_completion_tokens=6), "max_tokens", "max_completion_tokens"),
    (chat(max_completion_tokens=0), "max_completion_tokens", "greater than or equal to 1"),
    (chat(min_tokens=-1), "min_tokens", "greater than or equal to 0"),
    (chat(min_tokens=9, max_tokens=8), "min_tokens", "max_tokens, which is 8"),
    (chat(temperature=-1), "temperature", "greater than or equal to 0, not -1"),
    (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temperature", "finite"),
    (b'{"messages": [{"role": "user", "content": "x"}], "top_p": Infinity}', "top_p", "finite"),
    (chat(temperature=101), "temperature", "100"),
    (chat(top_p=2), "top_p", "less than or equal to 1, not 2"),
    (chat(top_p=-0.1), "top_p", "greater than or equal to 0"),
    (chat(top_k=-2), "top_k", "greater than or equal to -1"),
    (chat(top_k=1.5), "top_k", "integer"),
    (chat(min_p=1.1), "min_p", "less than or equal to 1"),
    (chat(repetition_penalty=0), "repetition_penalty", "0.01"),
    (chat(presence_penalty=3), "presence_penalty", "2"),
    (chat(frequency_penalty=-3), "frequency_penalty", "-2"),
    (chat(n=0), "n", "1"),
    (chat(n=129), "n", "128"),
    (chat(n=17), "n", "between 1 and 16"),  # the engine's own limit
    (chat(seed=2**63), "seed", "9223372036854775807"),
    (chat(logit_bias={"x": 1}), "logit_bias.x", "pattern"),
    (chat(logit_bias={"5": 101}), "logit_bias.5", "100"),
    (chat(logit_bias={"99999": 1}), "logit_bias", "264"),
    (chat(logit_bias={str(i): 0 for i in range(1025)}), "logit_bias", "1024"),
    (chat(logit_bias={f"x{i}": 0 for i in range(1025)}), "logit_bias", "1024"),
    (chat(stop=["x"] * 1000), "stop", "16"),
    (chat(stop=[""]), "stop[0]", "at least 1"),
    (chat(stop="x" * 1001), "stop[0]", "1000"),
    (chat(stop=["a\0"]), "stop[0]", "NUL"),
    (chat(stop=[5]), "stop[0]", "string"),
    (chat(stop_token_ids=[264]), "stop_token_ids", "264"),
    (chat(stop_token_ids=[-1]), "stop_token_ids[0]", "greater than or equal to 0"),
    (chat(stop_token_ids=[1] * 257), "stop_token_ids", "256"),
    (chat(bad_words=["x"] * 129), "bad_words", "128"),
    (chat(logprobs=5), "logprobs", "boolean"),
    (chat(logprobs=True, top_logprobs=21), "top_logprobs", "20"),
    (chat(top_logprobs=2), "top_logprobs", "logprobs"),
    (chat(stream="yes"), "stream", "boolean"),
    (chat(stream_options=[]), "stream_options", "object"),
    (chat(priority=2**31), "priority", "2147483647"),
    (chat(cache_salt="x" * 257), "cache_salt", "256"),
    (chat(tools=[{"type": "function"}]), "tools", "not supported"),
    (chat(tool_choice="required"), "tool_choice", "no tools"),
    (chat(functions=[{"name": "f"}]), "functions", "not supported"),
    (chat(response_format={"type": "xml"}), "response_format.type", "'xml'"),
    (chat(response_format={"type": "json_schema"}), "response_format.json_schema", "required"),
    (chat(response_format={"type": "json_schema", "json_schema": {"name": "x"}}), SCHEMA, "required"),
    (chat(**json_schema({"description": "x" * 300_000})), SCHEMA, "262144"),
    (chat(**json_schema({"not": {"type": "string"}})), SCHEMA, "'not'"),
    (chat(**json_schema({"type": "strange"})), SCHEMA, "strange"),
    (chat(guided_json={"not": {}}), "guided_json", "'not'"),
    (chat(guided_json="{"), "guided_json", "JSON"),
    (chat(guided_json=5), "guided_json", "5"),
    (chat(stream_options={"include_usage": 1}), "stream_options.include_usage", "boolean"),
    (chat(guided_json='"\\ud800"'), "guided_json", "object"),
    (chat(guided_json='{"const": "\\ud800"}'), "guided_json", "surrogate"),
    (chat(guided_regex="("), "guided_regex", "guided_regex"),
    (chat(guided_choice=[]), "guided_choice", "at least 1"),
    (chat(guided_choice=[""]), "guided_choice[0]", "empty"),
    (chat(guided_grammar="root ::= x"), "guided_grammar", "not supported"),
    (chat(guided_regex="a", guided_choice=["a"]), "guided_choice", "only one"),
    (chat(extra_body={"top_k": -2}), "top_k", "greater than or equal to -1"),
]
TEXTS: list[tuple[Any, str | None, str]] = [
    ({"model": MODEL}, "prompt", "required"),
    (text(prompt=None), "prompt", "must be"),
    (text(prompt=""), "prompt", "at least 1 token"),
    (text(prompt=[]), "prompt", "at least 1 token"),
    (text(prompt=[[]]), "prompt", "at least 1 token"),
    (text(prompt=["a", 5]), "prompt", "must be"),
    (text(prompt=[5, "a"]), "prompt", "token ids"),
    (text(prompt=[[1], "a"]), "prompt", "must be"),
    (text(prompt={"text": "a"}), "prompt", "must be"),
    (text(prompt="a\0"), "prompt", "NUL"),
    (text(prompt=["a", "x" * 30_000]), "prompt", "30000 characters"),
    (text(prompt=[-1]), "prompt", "token id"),
    (text(prompt=[2**32]), "prompt", "4294967295"),
    (text(prompt=[True]), "prompt", "must be"),
    (text(prompt=[264]), "prompt", "264"),
    (text(prompt=[7] * 1_000_000), "prompt", "2048 tokens"),
    (text(prompt=[7] * 2048), "prompt", "2048 tokens"),
    (text(prompt=["x"] * 129), "prompt", "128"),
    (text(prompt=["x"] * 65, n=2), "n", "128"),
    (text(logprobs=21), "logprobs", "20"),
    (text(logprobs=True), "logprobs", "integer"),
    (text(suffix="x"), "suffix", "not supported"),
    (text(best_of=3), "best_of", "n"),
    (text(echo=True, logprobs=1), "echo", "not supported"),
]


Refusal = tuple[str, Any, "str | None", str]  # path, body, the field named, what the message says
REFUSALS: list[Refusal] = [
    *(("/v1/chat/completions", *row) for row in CHAT),
    *(("/v1/completions", *row) for row in TEXTS),
]


def id_of(refusal: Refusal) -> str:
    path, _, param, told = refusal
    return f"{path.split('/')[2]}: {param}: {told}"


@dataclass
class Table:
    """One engine and one gateway for all rows."""

    running: RunningGateway
    executor: FakeExecutor


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def table(serve: Serve) -> AsyncIterator[Table]:
    executor = FakeExecutor(FAKE_INFO)
    async with serve(executor, guided=True) as running:
        yield Table(running, executor)


def assert_refused(response: httpx.Response, param: str | None, told: str) -> None:
    """400, in OpenAI's shape, with the field in its place and in the message."""
    assert (response.status_code, set(response.json())) == (400, {"error"}), response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param), error["message"]
    assert told in error["message"]
    assert (param or "").partition("[")[0].partition(".")[0] in error["message"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("refusal", REFUSALS, ids=id_of)
async def test_bad_input_is_refused_with_its_field(table: Table, refusal: Refusal) -> None:
    """Streamed or not, before anything gets as far as the executor."""
    path, body, param, told = refusal
    assert_refused(await table.running.post(path, body), param, told)
    if isinstance(body, dict) and "stream" not in body:
        assert_refused(await table.running.post(path, {**body, "stream": True}), param, told)
    assert table.executor.submitted == []


async def test_a_request_beside_bad_input_stays_unharmed(serve: Serve) -> None:
    """One refusal of each stage: JSON, field, prompt, the engine's limits, its guides."""
    said = "never mind " * 100
    executor = FakeExecutor(FAKE_INFO, script=says(said), step_s=0.001)
    async with serve(executor, guided=True) as running:

        async def beside() -> str:
            async with running.openai() as client:
                stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        unharmed = asyncio.create_task(beside())
        for body in (b"{", chat(n=0), chat(messages=[{"role": "user", "content": "x" * 5000}]), chat(n=17)):
            assert (await running.post("/v1/chat/completions", body)).status_code == 400
        refused = await running.post("/v1/chat/completions", chat(**json_schema({"not": {"type": "string"}})))
        assert refused.status_code == 400
        assert await unharmed == said
        assert len(executor.submitted) == 1
        assert executor.open_requests() == []


async def test_an_unknown_model_is_not_found(gateway: RunningGateway) -> None:
    for path, stream in itertools.product(("/v1/chat/completions", "/v1/completions"), (False, True)):
        response = await gateway.post(path, {"model": "gpt-99", "messages": HI, "prompt": "x", "stream": stream})
        assert response.status_code == 404
        error = response.json()["error"]
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert "gpt-99" in error["message"]
        assert MODEL in error["message"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit(serve: Serve, executor: FakeExecutor, chunked: bool) -> None:
    body = json.dumps(chat(user="x" * 20_000)).encode()

    async def parts() -> Any:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    async with serve(executor, max_body_bytes=10_000) as running:
        response = await running.http.post("/v1/chat/completions", content=parts() if chunked else body)
        assert response.status_code == 413
        assert "10000 bytes" in response.json()["error"]["message"]
        again = await running.post("/v1/chat/completions", chat())
        assert again.status_code == 200


async def test_the_content_type_does_not_matter(gateway: RunningGateway) -> None:
    """curl without a header says that JSON is a form."""
    body = json.dumps(chat()).encode()
    headers = {"content-type": "application/x-www-form-urlencoded"}
    response = await gateway.http.post("/v1/chat/completions", content=body, headers=headers)
    assert response.status_code == 200


async def test_errors_of_routing_have_the_same_shape(gateway: RunningGateway) -> None:
    for response, status in (
        (await gateway.http.get("/v1/nowhere"), 404),
        (await gateway.http.get("/v1/chat/completions"), 405),
        (await gateway.http.get("/v1/models/other"), 404),
    ):
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
