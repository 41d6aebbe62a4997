"""Lookahead decoding over HTTP: sizes for each request, OpenAI's predicted outputs, and what came of the guesses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError
from openai.types import CompletionUsage
from prometheus_client.parser import text_string_to_metric_families

from briton.config.lookahead import LookaheadConfig
from tests.fake_executor import SPECULATING_INFO, FakeExecutor
from tests.server.conftest import Serve, says
from tests.server.running import MODEL, RunningGateway

HI: Any = [{"role": "user", "content": "hi"}]
CHAT = {"model": MODEL, "messages": HI}
PREDICTED: Any = {"type": "content", "content": "abc"}


@pytest.fixture
def executor() -> FakeExecutor:
    """Says eight letters and the stop token, in steps of 4, 4 and 1; drafts as many as the engine allows."""
    return FakeExecutor(SPECULATING_INFO, script=says("abcdefgh"), tokens_per_step=4)


@pytest.fixture
async def gateway(serve: Serve, executor: FakeExecutor) -> AsyncIterator[RunningGateway]:
    async with serve(executor) as running:
        yield running


def details(usage: CompletionUsage | None) -> tuple[int | None, int | None, float]:
    """(accepted, rejected, tokens per step) as the official client reads them."""
    assert usage is not None
    told = usage.completion_tokens_details
    assert told is not None
    return told.accepted_prediction_tokens, told.rejected_prediction_tokens, usage.model_dump()["tokens_per_step"]


async def test_usage_as_the_client_knows_it(client: AsyncOpenAI) -> None:
    """11 tokens were drafted in each of three steps; 3 of the first eleven and 3 of the next became output."""
    answer = await client.chat.completions.create(model=MODEL, messages=HI)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 9, "drafts that came to nothing are not counted"
    assert details(answer.usage) == (6, 27, 3.0)
    chunks = client.chat.completions.stream(model=MODEL, messages=HI, stream_options={"include_usage": True})
    async with chunks as stream:
        assert details((await stream.get_final_completion()).usage) == (6, 27, 3.0)


async def test_usage_of_several_choices_and_prompts_is_their_sum(client: AsyncOpenAI) -> None:
    several = await client.chat.completions.create(model=MODEL, messages=HI, n=3)
    assert details(several.usage) == (3 * 6, 3 * 27, 3.0)
    texts = await client.completions.create(model=MODEL, prompt=["x", "y"], n=2, max_tokens=100)
    assert details(texts.usage) == (4 * 6, 4 * 27, 3.0)


async def test_sizes_of_a_request(client: AsyncOpenAI, executor: FakeExecutor) -> None:
    for create, prompt in (
        (client.chat.completions.create, {"messages": HI}),
        (client.completions.create, {"prompt": "x"}),
    ):
        for sizes in ((1, 1, 0), (4, 3, 2), (2, 1, 0)):
            names = ("window_size", "ngram_size", "verification_set_size")
            config = dict(zip(names, sizes, strict=True))
            answer: Any = await create(model=MODEL, **prompt, extra_body={"lookahead_decoding_config": config})
            assert executor.submitted[-1].lookahead == LookaheadConfig(*sizes)
            drafted = sum(details(answer.usage)[:2])  # type: ignore[arg-type]
            assert (drafted == 0) is (sizes == (1, 1, 0))


async def test_an_engine_that_does_not_speculate(serve: Serve) -> None:
    executor = FakeExecutor(script=says("abc"))
    off = {"window_size": 1, "ngram_size": 1, "verification_set_size": 0}
    async with serve(executor) as running, running.openai() as client:
        answer = await client.chat.completions.create(
            model=MODEL, messages=HI, prediction=PREDICTED, extra_body={"lookahead_decoding_config": off}
        )
        assert answer.usage is not None
        assert answer.usage.completion_tokens_details is None
        assert "tokens_per_step" not in answer.usage.model_dump()
        with pytest.raises(BadRequestError, match="does not speculate") as caught:
            await client.chat.completions.create(
                model=MODEL, messages=HI, extra_body={"lookahead_decoding_config": {**off, "window_size": 2}}
            )
        assert caught.value.param == "lookahead_decoding_config"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("née", "née"),
        ([{"type": "text", "text": "ab"}, {"type": "text", "text": "cd"}], "abcd"),
        ("", ""),
        ("x" * SPECULATING_INFO.max_seq_len, "x" * SPECULATING_INFO.max_seq_len),
    ],
)
async def test_a_prediction(client: AsyncOpenAI, executor: FakeExecutor, content: Any, text: str) -> None:
    await client.chat.completions.create(
        model=MODEL, messages=HI, prediction={"type": "content", "content": content}, n=2
    )
    assert executor.submitted[0].prediction_token_ids == tuple(text.encode())


def sizes(window: Any = 1, ngram: Any = 1, verification: Any = 0) -> dict[str, Any]:
    fields = {"window_size": window, "ngram_size": ngram, "verification_set_size": verification}
    return {"lookahead_decoding_config": {name: value for name, value in fields.items() if value is not None}}


SIZES = "lookahead_decoding_config"
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({SIZES: [1, 1, 0]}, SIZES, "object"),
    (sizes(window=None), f"{SIZES}.window_size", "required"),
    (sizes(window=0), f"{SIZES}.window_size", "greater than or equal to 1"),
    (sizes(ngram="3"), f"{SIZES}.ngram_size", "integer"),
    (sizes(verification=-1), f"{SIZES}.verification_set_size", "greater than or equal to 0"),
    (sizes(window=5), f"{SIZES}.window_size", "between 1 and 4, not 5"),
    (sizes(window=5, ngram=9), f"{SIZES}.window_size", "between 1 and 4, not 5"),
    (sizes(ngram=4), f"{SIZES}.ngram_size", "between 1 and 3, not 4"),
    (sizes(verification=2**32 - 1), f"{SIZES}.verification_set_size", "between 0 and 2"),
    (sizes(window=2**32), f"{SIZES}.window_size", "4294967295"),
    ({"prediction": "abc"}, "prediction", "object"),
    ({"prediction": {"type": "content"}}, "prediction.content", "required"),
    ({"prediction": {"content": "abc"}}, "prediction.type", "required"),
    ({"prediction": {"type": "text", "content": "abc"}}, "prediction.type", "'content'"),
    ({"prediction": {"type": "content", "content": None}}, "prediction.content", "string"),
    ({"prediction": {"type": "content", "content": []}}, "prediction.content", "at least 1"),
    ({"prediction": {"type": "content", "content": [{"type": "image_url"}]}}, "prediction.content[0].type", "text"),
    ({"prediction": {"type": "content", "content": "a\0"}}, "prediction.content", "NUL"),
    ({"prediction": {"type": "content", "content": "x" * 2049}}, "prediction.content", "2049 tokens"),
    ({"prediction": {"type": "content", "content": "x" * 1_000_000}}, "prediction.content", "1000000 characters"),
]


@pytest.mark.parametrize("stream", [False, True])
async def test_bad_input_names_the_field(gateway: RunningGateway, executor: FakeExecutor, stream: bool) -> None:
    for fields, param, told in BAD:
        response = await gateway.post("/v1/chat/completions", {**CHAT, **fields, "stream": stream})
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param), error
        assert error["message"].startswith(param)
        assert told in error["message"]
        if SIZES in fields:
            again = await gateway.post("/v1/completions", {"prompt": "x", **fields, "stream": stream})
            assert (again.status_code, again.json()["error"]) == (400, error)
    assert executor.submitted == []


async def test_null_is_unset(gateway: RunningGateway, executor: FakeExecutor) -> None:
    body = {**CHAT, "prediction": None, SIZES: None}
    assert (await gateway.post("/v1/chat/completions", body)).status_code == 200
    assert (executor.submitted[0].lookahead, executor.submitted[0].prediction_token_ids) == (None, ())


async def test_tokens_per_step_is_a_ratio_of_two_rates(gateway: RunningGateway) -> None:
    usage = (await gateway.post("/v1/chat/completions", CHAT)).json()["usage"]
    text = (await gateway.http.get("/metrics")).text
    samples = {s.name: s.value for family in text_string_to_metric_families(text) for s in family.samples}
    tokens, steps = samples["briton_engine_output_tokens_total"], samples["briton_engine_sequence_steps_total"]
    assert tokens / steps == usage["tokens_per_step"] == 3.0
    drafted, accepted = samples["briton_engine_draft_tokens_total"], samples["briton_engine_accepted_tokens_total"]
    assert usage["completion_tokens_details"] == {
        "accepted_prediction_tokens": accepted,
        "rejected_prediction_tokens": drafted - accepted,
    }
