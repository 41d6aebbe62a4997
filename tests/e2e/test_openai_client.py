"""The official OpenAI client against the real model."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Annotated, Any, Literal

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel, Field

from tests.e2e.serving import LOOKAHEAD_OFF, MODEL, Serving, alike

pytestmark = pytest.mark.slow

GRAVITY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is gravity?"}]


class City(BaseModel):
    """What the model is asked to fill in."""

    name: Annotated[str, Field(max_length=20)]
    continent: Literal["Africa", "America", "Asia", "Europe", "Oceania"]
    is_capital: bool


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_the_curl_line_works_when_pasted(serving: Serving) -> None:
    line = next(line for line in serving.output.splitlines() if "curl" in line)
    done = subprocess.run(["sh", "-c", f"{line} --silent --show-error"], capture_output=True, text=True, timeout=60)
    assert "ravity" in json.loads(done.stdout)["choices"][0]["message"]["content"], done.stderr


def test_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=GRAVITY, temperature=0, max_tokens=200)
    assert "ravity" in (reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert 0 < reply.usage.completion_tokens < 200


def test_a_streamed_chat_has_the_same_text(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "messages": GRAVITY, "temperature": 0, "max_tokens": 200}
    whole = client.chat.completions.create(**options, extra_body=alike())
    options |= {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**options, extra_body=alike()))
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert choices[0].delta.role == "assistant"
    assert all(choice.delta.role is None for choice in choices[1:])
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_parse_with_a_pydantic_model(client: openai.OpenAI) -> None:
    reply = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Describe the city of Paris."}],
        response_format=City,
        temperature=0,
        max_tokens=100,
    )
    city = reply.choices[0].message.parsed
    assert city is not None
    assert "Paris" in city.name
    assert city.continent == "Europe"


@pytest.mark.parametrize("seed", range(4))
def test_a_schema_holds_at_high_temperature(client: openai.OpenAI, seed: int) -> None:
    reply = client.chat.completions.parse(
        model=MODEL, messages=GRAVITY, response_format=City, temperature=2, seed=seed, max_tokens=300
    )
    assert isinstance(reply.choices[0].message.parsed, City)


def test_json_object(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": 'Repeat this JSON object, and nothing else: {"city": "Paris"}'}],
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=200,
    )
    assert reply.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(reply.choices[0].message.content or ""), dict)


def test_guided_regex_and_choice(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "messages": GRAVITY, "temperature": 1, "seed": 7}
    regex = client.chat.completions.create(**options, extra_body={"guided_regex": r"[A-Z][a-z]{2,8}: \d{1,3}"})
    assert re.fullmatch(r"[A-Z][a-z]{2,8}: \d{1,3}", regex.choices[0].message.content or "")
    assert regex.choices[0].finish_reason == "stop"
    choice = client.chat.completions.create(**options, extra_body={"guided_choice": ["Rome", "Paris", "Berlin"]})
    assert choice.choices[0].message.content in ("Rome", "Paris", "Berlin")


def test_completions(serving: Serving, client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**options, extra_body=alike())
    assert "Paris" in whole.choices[0].text
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8
    # Not strict: the client's type has no null finish_reason, which OpenAI itself sends in all chunks but the last.
    with openai.OpenAI(base_url=serving.url, api_key="none") as lenient:
        chunks = list(lenient.completions.create(**options, stream=True, extra_body=alike()))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_stop_string_ends_the_text_and_does_not_leak(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "messages": GRAVITY, "temperature": 0, "max_tokens": 200}
    whole = client.chat.completions.create(**options, extra_body=alike()).choices[0].message.content or ""
    stop = whole[whole.index(".") - 4 : whole.index(".")]
    stream = client.chat.completions.create(**options, stop=[stop], stream=True, extra_body=alike())
    choices = [chunk.choices[0] for chunk in stream]
    assert "".join(choice.delta.content or "" for choice in choices) == whole[: whole.index(stop)]
    assert choices[-1].finish_reason == "stop"
    reply = client.chat.completions.create(**options, stop=[stop], extra_body=alike())
    assert reply.choices[0].message.content == whole[: whole.index(stop)]
    assert reply.usage is not None
    told = reply.usage.model_dump(exclude_none=True)
    assert set(told["timings"]) == {"queue_s", "prefill_s", "decode_s"}, "the engine ended it, and told"
    assert {"prompt_tokens_details", "completion_tokens_details", "tokens_per_step"} <= set(told)


def test_several_choices_and_a_seed(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": MODEL, "messages": GRAVITY, "temperature": 1, "max_tokens": 16, "n": 3}
    first, second = (client.chat.completions.create(**options, seed=11, extra_body=alike()) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    assert texts == [choice.message.content for choice in second.choices]


def test_logprobs(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=GRAVITY, temperature=0, max_tokens=8, logprobs=True, top_logprobs=3
    )
    assert reply.choices[0].logprobs is not None
    content = reply.choices[0].logprobs.content
    assert content is not None
    assert "".join(entry.token for entry in content) == reply.choices[0].message.content
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob, abs=1e-4)  # greedy: the most likely


def test_the_second_call_finds_its_prompt_in_the_cache(client: openai.OpenAI) -> None:
    story = "The quick brown fox jumps over the lazy dog, and the dog does not mind at all. " * 8
    options: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": story}], "max_tokens": 4}
    first, second = (client.chat.completions.create(**options, temperature=0) for _ in range(2))
    assert first.choices[0].message.content == second.choices[0].message.content
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens is not None
    assert (
        second.usage.prompt_tokens - 32 <= second.usage.prompt_tokens_details.cached_tokens < second.usage.prompt_tokens
    )


def test_what_is_repeated_comes_several_tokens_a_step(serving: Serving, client: openai.OpenAI) -> None:
    """The text is in the prompt and predicted; a request may turn lookahead off, and may not ask for more of it."""
    text = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs."
    options: dict[str, Any] = {
        "model": MODEL,
        "prompt": f"{text}\n{text}\n{text}\nThe quick",
        "max_tokens": 40,
        "temperature": 0,
    }
    usages = []
    for extra in ({}, {"lookahead_decoding_config": LOOKAHEAD_OFF}):
        reply = client.completions.create(**options, extra_body=extra)
        assert "brown fox jumps over the lazy dog" in reply.choices[0].text
        assert reply.usage is not None
        assert reply.usage.completion_tokens_details is not None
        usages.append(reply.usage)
    repeated, off = (usage.completion_tokens_details for usage in usages)
    assert (repeated.accepted_prediction_tokens or 0) >= 10
    assert (off.accepted_prediction_tokens, off.rejected_prediction_tokens) == (0, 0)
    assert usages[0].model_dump()["tokens_per_step"] > 1.3
    assert usages[1].model_dump()["tokens_per_step"] == 1
    with pytest.raises(openai.BadRequestError, match=r"lookahead_decoding_config\.ngram_size must be between 1 and 1"):
        client.completions.create(
            **options, extra_body={"lookahead_decoding_config": {**LOOKAHEAD_OFF, "ngram_size": 2}}
        )
    assert re.search(r"^briton_engine_accepted_tokens_total [1-9]", serving.get("/metrics")[1], re.MULTILINE)


def test_a_prediction(client: openai.OpenAI) -> None:
    code = "def area(width, height):\n    return width * height\n"
    reply = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": f"Repeat this function, with type hints:\n\n{code}"}],
        prediction={"type": "content", "content": [{"type": "text", "text": code}]},
        temperature=0,
        max_tokens=60,
    )
    assert reply.usage is not None
    assert reply.usage.completion_tokens_details is not None
    assert (reply.usage.completion_tokens_details.accepted_prediction_tokens or 0) > 0


def test_metrics_and_health(serving: Serving, client: openai.OpenAI) -> None:
    client.chat.completions.create(model=MODEL, messages=GRAVITY, max_tokens=1)
    for path in ("/health", "/live", "/ready", "/version"):
        assert serving.get(path)[0] == 200, path
    status, metrics = serving.get("/metrics")
    assert status == 200
    assert re.search(r"^briton_\w+", metrics, re.MULTILINE)
    assert serving.get("/openapi.json")[0] == 200
