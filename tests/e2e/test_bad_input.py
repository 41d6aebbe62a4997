"""Bad input gets its 4xx with the field named, and a greedy request that runs beside it keeps its output."""

from __future__ import annotations

import functools
import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.conftest import Start, strict_client
from tests.e2e.serving import EXAMPLE, MODEL, Serving
from tests.e2e.test_lifecycle import LONG, is_idle, long_alike
from tests.processes import wait_until

pytestmark = pytest.mark.slow

HELLO = [{"role": "user", "content": "Hello"}]


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    """A response_format of a schema."""
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}


# What the real tokenizer, engine and guides refuse; the fields alone are in tests/server/test_bad_input.py.
# (body beside model and messages, the field that the error names)
BAD_CHATS: list[tuple[dict[str, Any], str]] = [
    ({"messages": [{"role": "user", "content": "word " * 9000}]}, "messages"),
    ({"logit_bias": {"999999": 1}}, "logit_bias"),
    ({"stop_token_ids": [999999]}, "stop_token_ids"),
    ({"n": 100}, "n"),
    ({"response_format": schema_format({"type": "array", "uniqueItems": True})}, "response_format"),
    ({"guided_regex": "("}, "guided_regex"),
]


def post(serving: Serving, path: str, body: str) -> tuple[int, dict[str, Any]]:
    """Status and parsed body of a POST."""
    connection = http.client.HTTPConnection("127.0.0.1", serving.http_port, timeout=60)
    try:
        connection.request("POST", path, body.encode(), {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize(("fields", "field"), BAD_CHATS, ids=[f"{field}-{i}" for i, (_, field) in enumerate(BAD_CHATS)])
def test_a_bad_chat_names_its_field(serving: Serving, fields: dict[str, Any], field: str) -> None:
    status, body = post(serving, "/v1/chat/completions", json.dumps({"model": MODEL, "messages": HELLO, **fields}))
    assert status == 400, body
    assert str(body["error"]["param"]).startswith(field), body
    assert body["error"]["type"] == "invalid_request_error"


def test_malformed_json_and_an_unknown_model(serving: Serving) -> None:
    status, body = post(serving, "/v1/chat/completions", '{"model": ')
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    status, body = post(serving, "/v1/chat/completions", json.dumps({"model": "gpt-9", "messages": HELLO}))
    assert (status, body["error"]["code"], body["error"]["param"]) == (404, "model_not_found", "model")


@pytest.mark.parametrize("prompt", [[1] * 1_000_000, [1_000_000], "word " * 9000], ids=["ids", "an id", "a text"])
def test_a_bad_prompt(serving: Serving, prompt: object) -> None:
    status, body = post(serving, "/v1/completions", json.dumps({"model": MODEL, "prompt": prompt}))
    assert (status, body["error"]["param"]) == (400, "prompt"), body


def test_bad_input_leaves_a_running_request_alone(serving: Serving, client: openai.OpenAI) -> None:
    alone = client.chat.completions.create(**long_alike(), max_tokens=300).choices[0].message.content
    stream = client.chat.completions.create(**long_alike(), max_tokens=300, stream=True)
    text = next(stream).choices[0].delta.content or ""
    for fields, _ in BAD_CHATS:
        status, body = post(serving, "/v1/chat/completions", json.dumps({"model": MODEL, "messages": HELLO, **fields}))
        assert status == 400, body
    assert text + "".join(chunk.choices[0].delta.content or "" for chunk in stream) == alone


@pytest.fixture
def small_pool_config(tmp_path: Path) -> Path:
    """The example with a KV cache of 8 blocks: four requests of 2 blocks each."""
    text = EXAMPLE.read_text().replace("kv_cache_tokens: 32768", "kv_cache_tokens: 256")
    assert "256" in text
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def test_64_requests_at_once_on_a_pool_that_fits_4(start: Start, small_pool_config: Path) -> None:
    serving = start(small_pool_config)

    def ask(client: openai.OpenAI, number: int) -> int:
        messages: Any = [{"role": "user", "content": f"Write about the number {number}."}]
        reply = client.chat.completions.create(**{**LONG, "messages": messages}, max_tokens=20)
        assert reply.usage is not None
        assert reply.choices[0].finish_reason == "length"
        return int(reply.usage.completion_tokens)

    with strict_client(serving) as client, ThreadPoolExecutor(64) as pool:
        assert list(pool.map(functools.partial(ask, client), range(64))) == [20] * 64
    wait_until(lambda: is_idle(serving))
    status, body = post(
        serving,
        "/v1/chat/completions",
        json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "a " * 300}]}),
    )
    assert status == 400, body
    assert "256" in body["error"]["message"]
    assert serving.stop() == 0
