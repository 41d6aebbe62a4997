"""The gRPC service over a fake executor: what a client in any language sees."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from briton.engine.types import ExecutorStats, GenerationRequest, RankStats, SamplingParams
from briton.engine.watchdog import StallLimits
from briton.errors import BritonError
from briton.guidance.compiler import GuideCompiler
from briton.process.logs import configure_logging
from briton.rpc.server import SERVICE, EngineServer
from briton.text.tokenizer import Tokenizer
from briton.v1 import engine_pb2 as pb
from briton.v1 import engine_pb2_grpc as pb_grpc
from briton.v1.current_request import MAX_REQUEST_ID_LENGTH
from tests.fake_engine import RunningEngine, run_fake_engine, write_tokenizer
from tests.fake_executor import FAKE_INFO, IM_END, FakeExecutor
from tests.generated import ROOT, generate
from tests.text.small_tokenizers import sentencepiece

HELLO = "Hello, world. How are you?"


def say(text: str) -> Callable[[GenerationRequest, int], list[int]]:
    """A script: each sequence is this text."""
    return lambda request, index: list(text.encode())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> Iterator[GuideCompiler]:
    compiler = GuideCompiler(
        tokenizer.vocabulary_bytes(FAKE_INFO.vocab_size),
        vocab_size=FAKE_INFO.vocab_size,
        stop_token_ids=FAKE_INFO.stop_token_ids,
        encode=tokenizer.encode,
        tokenizer_hash=tokenizer.hash,
    )
    yield compiler
    compiler.close()


@pytest.fixture
async def served(tokenizer: Tokenizer, compiler: GuideCompiler) -> AsyncIterator[RunningEngine]:
    """A fake executor that draws letters, with 1 ms steps."""
    async with run_fake_engine(FakeExecutor(step_s=0.001), tokenizer=tokenizer, compiler=compiler) as running:
        yield running


def ask(prompt: str | list[int] = "hi", *, sampling: dict[str, Any] | None = None, **fields: Any) -> pb.GenerateRequest:
    """A request; 8 tokens unless told otherwise."""
    source = {"text": prompt} if isinstance(prompt, str) else {"token_ids": pb.TokenIds(ids=prompt)}
    return pb.GenerateRequest(**source, sampling=pb.SamplingParams(**{"max_tokens": 8, **(sampling or {})}), **fields)


async def responses(
    stub: pb_grpc.EngineAsyncStub, request: pb.GenerateRequest, **options: Any
) -> list[pb.GenerateResponse]:
    return [response async for response in stub.Generate(request, **options)]


def token_ids(answers: list[pb.GenerateResponse], index: int = 0) -> list[int]:
    return [i for answer in answers for output in answer.outputs if output.index == index for i in output.token_ids]


def text(answers: list[pb.GenerateResponse], index: int = 0) -> str:
    return "".join(output.text for answer in answers for output in answer.outputs if output.index == index)


def detail(error: grpc.aio.AioRpcError, kind: type[Message]) -> Any:
    """The status detail of one type, or None."""
    metadata = {key: value for key, value in error.trailing_metadata() or ()}  # noqa: C416
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    found = kind()
    return next((found for packed in status.details if packed.Unpack(found)), None)


def field_of(error: grpc.aio.AioRpcError) -> str:
    return str(detail(error, error_details_pb2.BadRequest).field_violations[0].field)


async def refusal(stub: pb_grpc.EngineAsyncStub, request: pb.GenerateRequest, **options: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await responses(stub, request, **options)
    return caught.value


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


# Generate.


async def test_token_ids_in_token_ids_out(served: RunningEngine) -> None:
    answers = await responses(served.stub, ask([1, 2, 3]))
    assert len(token_ids(answers)) == 8
    assert text(answers) == ""
    last = answers[-1]
    assert last.outputs[0].finish_reason == pb.FINISH_REASON_LENGTH
    assert not last.outputs[0].HasField("stop_token_id")
    assert [answer.HasField("usage") for answer in answers].count(True) == 1
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.cached_tokens) == (3, 8, 0)
    assert last.usage.decode_s > 0


async def test_text_in_text_out(tokenizer: Tokenizer) -> None:
    executor = FakeExecutor(script=say("Grüße, 世界 👋"))
    async with run_fake_engine(executor, tokenizer=tokenizer) as running:
        answers = await responses(running.stub, ask("a<|im_end|>\0", return_text=True, sampling={"max_tokens": 99}))
        assert executor.submitted[0].prompt_token_ids == (97, IM_END, 0)
        assert text(answers) == "Grüße, 世界 👋"
        assert answers[-1].outputs[0].finish_reason == pb.FINISH_REASON_STOP
        assert answers[-1].outputs[0].stop_token_id == FAKE_INFO.stop_token_ids[0]
        assert token_ids(answers)[-1] == FAKE_INFO.stop_token_ids[0]


async def test_streamed_text_is_whole_characters(tokenizer: Tokenizer) -> None:
    script = say("é👋" * 4)
    async with run_fake_engine(FakeExecutor(script=script, step_s=0.003), tokenizer=tokenizer) as running:
        answers = await responses(running.stub, ask(return_text=True, sampling={"max_tokens": 99}))
        assert len(answers) > 2
        assert all("\ufffd" not in output.text for answer in answers for output in answer.outputs)
        assert text(answers) == "é👋" * 4


@pytest.mark.parametrize("tokens_per_step", [1, 4, 64])
async def test_stop_string_ends_and_does_not_leak(tokenizer: Tokenizer, tokens_per_step: int) -> None:
    """With several tokens a step too: those after the stop string are neither sent nor counted."""
    executor = FakeExecutor(script=say(HELLO), step_s=0.002, tokens_per_step=tokens_per_step)
    async with run_fake_engine(executor, tokenizer=tokenizer) as running:
        request = ask(return_text=True, stop=["ld. H", "unseen"], sampling={"max_tokens": 99, "logprobs": 1})
        answers = await responses(running.stub, request)
        assert text(answers) == "Hello, wor"
        assert bytes(token_ids(answers)) == b"Hello, world. H"
        ends = [output for answer in answers for output in answer.outputs if output.finish_reason]
        assert [end.finish_reason for end in ends] == [pb.FINISH_REASON_STOP]
        assert not ends[0].HasField("stop_token_id")
        assert answers[-1].usage.completion_tokens == len("Hello, world. H")
        logprobs = [entry for answer in answers for output in answer.outputs for entry in output.logprobs]
        assert [entry.token_id for entry in logprobs] == token_ids(answers)
        assert executor.open_requests() == []


async def test_text_held_back_for_a_stop_string_comes_at_the_end(tokenizer: Tokenizer) -> None:
    async with run_fake_engine(FakeExecutor(script=say(HELLO)), tokenizer=tokenizer) as running:
        answers = await responses(running.stub, ask(return_text=True, stop=["you?!"], sampling={"max_tokens": 99}))
        assert text(answers) == HELLO


async def test_stop_strings_of_several_sequences(tokenizer: Tokenizer) -> None:
    executor = FakeExecutor(script=lambda _, index: list(b"abcdefgh"[index:]) + [46] * 50, step_s=0.001)
    async with run_fake_engine(executor, tokenizer=tokenizer) as running:
        request = ask(return_text=True, stop=["ef"], sampling={"max_tokens": 40, "n": 3})
        answers = await responses(running.stub, request)
        assert [text(answers, index) for index in range(3)] == ["abcd", "bcd", "cd"]
        assert answers[-1].usage.completion_tokens == 6 + 5 + 4
        assert len(executor.cancelled) == 1


@pytest.mark.parametrize("n", [1, 3])
async def test_without_streaming_one_response_for_each_sequence(tokenizer: Tokenizer, n: int) -> None:
    executor = FakeExecutor(script=lambda _, index: list(HELLO.encode()[: 4 + index]), step_s=0.001)
    async with run_fake_engine(executor, tokenizer=tokenizer) as running:
        answers = await responses(running.stub, ask(stream=False, return_text=True, sampling={"n": n, "logprobs": 0}))
        outputs = [output for answer in answers for output in answer.outputs]
        assert [output.index for output in outputs] == list(range(n))
        assert [output.text for output in outputs] == [HELLO[: 4 + index] for index in range(n)]
        assert all(output.finish_reason == pb.FINISH_REASON_STOP for output in outputs)
        assert all(len(output.logprobs) == len(output.token_ids) for output in outputs)
        assert answers[-1].usage.completion_tokens == sum(5 + index for index in range(n))
        assert not executor.submitted[0].stream


async def test_without_streaming_a_stop_string_ends_early(tokenizer: Tokenizer) -> None:
    executor = FakeExecutor(step_s=0.001, script=say("ab." + "x" * 1900))
    async with run_fake_engine(executor, tokenizer=tokenizer) as running:
        request = ask(stream=False, return_text=True, stop=["."], sampling={"max_tokens": 1900})
        (answer,) = await responses(running.stub, request)
        assert text([answer]) == "ab"
        assert answer.outputs[0].finish_reason == pb.FINISH_REASON_STOP
        assert answer.usage.completion_tokens == 3
        assert executor.stats().num_output_tokens < 1000


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["hi", [1, 2]], ids=["text", "token_ids"])
async def test_a_stop_string_without_text(tokenizer: Tokenizer, prompt: Any, stream: bool) -> None:
    """A caller that makes the text itself: the sequence ends all the same, and its usage is whole."""
    executor = FakeExecutor(step_s=0.001, script=say("ab</x>" + "x" * 1900))
    async with run_fake_engine(executor, tokenizer=tokenizer) as running:
        request = ask(prompt, stream=stream, stop=["</x>"], sampling={"max_tokens": 1900, "logprobs": 0})
        answers = await responses(running.stub, request)
    assert stream or len(answers) == 1
    assert bytes(token_ids(answers)) == b"ab</x>"
    assert text(answers) == ""
    assert [output.finish_reason for answer in answers for output in answer.outputs][-1] == pb.FINISH_REASON_STOP
    assert sum(len(output.logprobs) for answer in answers for output in answer.outputs) == len(b"ab</x>")
    usage = answers[-1].usage
    assert usage.completion_tokens == len(b"ab</x>")
    assert usage.decode_s > 0, "the times of a request that was cancelled here are told too"
    assert executor.stats().num_output_tokens < 1000


async def test_text_of_its_own() -> None:
    """Sentencepiece's space at the start of a text: dropped in a chat's answer, kept where a prompt goes on."""
    tokenizer = sentencepiece()
    said = tokenizer.encode("the cat")
    executor = FakeExecutor(replace(FAKE_INFO, vocab_size=tokenizer.vocab_size), script=lambda _, __: said)
    async with run_fake_engine(executor, tokenizer=tokenizer) as running:
        for standalone, told in ((False, " the cat"), (True, "the cat")):
            request = ask([*tokenizer.encode("a")], return_text=True, standalone_text=standalone)
            assert text(await responses(running.stub, request)) == told
            stopped = ask([*tokenizer.encode("a")], stop=[" the"], standalone_text=standalone)
            assert (token_ids(await responses(running.stub, stopped)) == said[:1]) is not standalone


async def test_logprobs(served: RunningEngine) -> None:
    answers = await responses(served.stub, ask(sampling={"logprobs": 3}))
    entries = [entry for answer in answers for output in answer.outputs for entry in output.logprobs]
    assert [entry.token_id for entry in entries] == token_ids(answers)
    assert all(len(entry.top) == 3 and entry.top[0].token_id == entry.token_id for entry in entries)
    assert all(entry.logprob < 0 for entry in entries)


async def test_responses_a_slow_client_did_not_read_are_joined(tokenizer: Tokenizer) -> None:
    """Backpressure without loss: a window of 64 KB fills, and what comes meanwhile is one response."""
    info = replace(FAKE_INFO, max_seq_len=4096)
    async with run_fake_engine(FakeExecutor(info, tokens_per_step=1)) as running:
        call = running.stub.Generate(ask([1], sampling={"max_tokens": 4000, "logprobs": 20}))
        await asyncio.sleep(0.5)
        answers = [answer async for answer in call]
        assert len(token_ids(answers)) == 4000
        assert len(answers) < 2000


async def test_unset_scalars_are_the_models_defaults() -> None:
    defaults = SamplingParams(temperature=0.6, top_p=0.9, repetition_penalty=1.1)
    info = replace(FAKE_INFO, default_sampling=defaults, default_max_tokens=7)
    executor = FakeExecutor(info)
    async with run_fake_engine(executor) as running:
        prompt = pb.TokenIds(ids=[1])
        await responses(running.stub, pb.GenerateRequest(token_ids=prompt))
        await responses(running.stub, pb.GenerateRequest(token_ids=prompt, sampling=pb.SamplingParams(temperature=0)))
        full = pb.SamplingParams(
            max_tokens=3, min_tokens=1, n=2, temperature=0.5, top_k=4, top_p=0.5, min_p=0.25, seed=-9
        )
        full.logit_bias[5] = -1.5
        full.bad_words.add(ids=[1, 2])
        full.stop_token_ids.append(9)
        full.ignore_eos = True
        await responses(running.stub, pb.GenerateRequest(token_ids=prompt, sampling=full, priority=-3, cache_salt="x"))
    first, second, third = executor.submitted
    assert first.sampling == replace(defaults, max_tokens=7)
    assert second.sampling == replace(defaults, max_tokens=7, temperature=0.0)
    assert (third.priority, third.cache_salt, third.stream) == (-3, "x", True)
    assert third.sampling == replace(
        defaults, max_tokens=3, min_tokens=1, n=2, temperature=0.5, top_k=4, top_p=0.5, min_p=0.25, seed=-9,
        logit_bias={5: -1.5}, bad_words=((1, 2),), stop_token_ids=(9,), ignore_eos=True,
    )  # fmt: skip


async def test_max_tokens_defaults_to_what_the_context_leaves(served: RunningEngine) -> None:
    prompt = [1] * (FAKE_INFO.max_seq_len - 4)
    answers = await responses(served.stub, pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt)))
    assert len(token_ids(answers)) == 4


async def test_guides(served: RunningEngine) -> None:
    schema = json.dumps(
        {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
    )
    more = {"max_tokens": 99}
    answers = await responses(served.stub, ask(return_text=True, guide=pb.Guide(json_schema=schema), sampling=more))
    assert json.loads(text(answers)) == {"a": 1}
    answers = await responses(served.stub, ask(return_text=True, guide=pb.Guide(regex="[xy]{3}z"), sampling=more))
    assert text(answers) == "xxxz"
    guide = pb.Guide(choice=pb.Choice(choices=["yes", "no"]))
    answers = await responses(served.stub, ask(return_text=True, guide=guide, sampling=more))
    assert text(answers) in ("yes", "no")
    answers = await responses(served.stub, ask(return_text=True, guide=pb.Guide(json_object=True), sampling=more))
    assert text(answers).startswith("{")


# Bad input. Each row: the field that is named, and the request.

NAN = float("nan")
BAD_SAMPLING: list[dict[str, Any]] = [
    {"max_tokens": 0},
    {"temperature": -1.0},
    {"temperature": NAN},
    {"top_p": 2.0},
    {"top_p": NAN},
    {"min_p": 1.5},
    {"n": 0},
    {"n": 2**32 - 1},
    {"logprobs": 21},
    {"min_tokens": 9},
    {"repetition_penalty": 0.0},
    {"presence_penalty": 2.5},
    {"frequency_penalty": float("inf")},
    {"stop_token_ids": [FAKE_INFO.vocab_size]},
    {"bad_words": [pb.TokenIds()]},
    {"logit_bias": {FAKE_INFO.vocab_size: 1.0}},
]
DEEP = '{"type":"array","items":' * 40 + "{}" + "}" * 40
CONTEXT = str(FAKE_INFO.max_seq_len)
# (the field that is named, what the message says of it, the request)
BAD: list[tuple[str, str, pb.GenerateRequest]] = [
    *((f"sampling.{name}", name, ask([1], sampling=bad)) for bad in BAD_SAMPLING for name in bad),
    ("sampling.logit_bias[1]", "-100 and 100", ask([1], sampling={"logit_bias": {1: 200.0}})),
    ("prompt", "missing", pb.GenerateRequest()),
    ("prompt", "at least 1 token", ask("")),
    ("prompt", "at least 1 token", ask([])),
    ("prompt", CONTEXT, ask([1] * FAKE_INFO.max_seq_len)),
    ("prompt", CONTEXT, ask([1] * (FAKE_INFO.kv_cache_tokens + 1))),
    ("prompt", CONTEXT, ask([1] * 10**6)),
    ("prompt", CONTEXT, ask([2**32 - 1] * 10**6)),
    ("prompt", CONTEXT, ask("x" * FAKE_INFO.max_seq_len)),
    ("prompt", CONTEXT, ask("x" * 10**6)),
    ("prompt", "264", ask([1, FAKE_INFO.vocab_size])),
    ("stop", "limit is 16", ask(stop=["x"] * 1000)),
    ("stop[1]", "1 to 1000 characters", ask(stop=["x", ""])),
    ("stop[0]", "1 to 1000 characters", ask(stop=["x" * 1001])),
    ("request_id", "limit is 256", ask(request_id="x" * 300)),
    ("cache_salt", "limit is 256", ask(cache_salt="x" * 300)),
    ("guide.json_schema", "limit is 262144", ask(guide=pb.Guide(json_schema='{"enum": ["' + "x" * 300_000 + '"]}'))),
    ("guide.json_schema", "not valid JSON", ask(guide=pb.Guide(json_schema="{"))),
    ("guide.json_schema", "limit of 32", ask(guide=pb.Guide(json_schema=DEEP))),
    ("guide.regex", "regular expression", ask(guide=pb.Guide(regex="("))),
    ("guide.choice.choices", "at least 1", ask(guide=pb.Guide(choice=pb.Choice()))),
]


async def test_bad_input_names_the_field_and_harms_nobody(served: RunningEngine) -> None:
    """Beside a running request, whose tokens stay the same."""
    alone = token_ids(await responses(served.stub, ask([5, 6], sampling={"max_tokens": 500})))
    beside = asyncio.create_task(responses(served.stub, ask([5, 6], sampling={"max_tokens": 500})))
    await until(lambda: served.engine.num_open == 1)
    for field, told, request in BAD:
        error = await refusal(served.stub, request)
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field_of(error).startswith(field)
        assert told in (error.details() or "")
    assert token_ids(await beside) == alone


async def test_too_long_a_prompt_has_openais_code(served: RunningEngine) -> None:
    error = await refusal(served.stub, ask([1] * 10**6))
    assert detail(error, error_details_pb2.ErrorInfo).reason == "context_length_exceeded"
    assert "1000000 tokens" in (error.details() or "")
    assert str(FAKE_INFO.max_seq_len) in (error.details() or "")


async def test_an_unsupported_schema_keyword_is_named(served: RunningEngine) -> None:
    schema = '{"type": "object", "properties": {"a": {"type": "array", "uniqueItems": true}}}'
    error = await refusal(served.stub, ask(guide=pb.Guide(json_schema=schema)))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert field_of(error) == "guide.json_schema"
    assert "uniqueItems" in (error.details() or "")
    assert "/properties/a" in (error.details() or "")


async def test_a_negative_max_tokens_cannot_be_spelled(served: RunningEngine) -> None:
    """The field is unsigned. -1 forced onto the wire reads as 2^32 - 1: cut to what the context leaves."""
    with pytest.raises(ValueError, match="out of range"):
        pb.SamplingParams(max_tokens=-1)
    forced = pb.SamplingParams.FromString(b"\x08" + b"\xff" * 9 + b"\x01")
    answers = await responses(served.stub, pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1] * 2040), sampling=forced))
    assert len(token_ids(answers)) == 8


async def test_unknown_model(served: RunningEngine) -> None:
    error = await refusal(served.stub, ask(model="gpt-5"))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "gpt-5" in (error.details() or "")
    assert len(token_ids(await responses(served.stub, ask(model="fake")))) == 8


async def test_adapters_are_asked_for_as_models(tokenizer: Tokenizer) -> None:
    executor = FakeExecutor(replace(FAKE_INFO, lora_adapters=("legal", "poems")))
    async with run_fake_engine(executor, tokenizer=tokenizer) as running:
        assert (await running.stub.GetModelInfo(pb.GetModelInfoRequest())).lora_adapters == ["legal", "poems"]
        for model in ("poems", "fake", ""):
            await responses(running.stub, ask(model=model))
        error = await refusal(running.stub, ask(model="prose"))
    assert [request.lora for request in executor.submitted] == ["poems", None, None]
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert "'fake', 'legal', 'poems' are" in (error.details() or "")


async def test_an_open_request_id_is_refused(served: RunningEngine) -> None:
    first = asyncio.create_task(responses(served.stub, ask(request_id="a", sampling={"max_tokens": 200})))
    await asyncio.sleep(0.05)
    error = await refusal(served.stub, ask(request_id="a"))
    assert (error.code(), field_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "request_id")
    assert len(token_ids(await responses(served.stub, ask(request_id="b")))) == 8
    assert len(token_ids(await first)) == 200
    assert len(token_ids(await responses(served.stub, ask(request_id="a")))) == 8


async def test_log_lines_know_their_request(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is logged while a call is served, in whatever room, names that call; nothing else does."""
    logger, root = logging.getLogger("briton.text"), logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    configure_logging("info", "json", process="engine")
    encode = tokenizer.encode

    def failing(text: str, *, field: str) -> list[int]:
        logger.error("%s", text)
        return encode(text, field=field)

    monkeypatch.setattr(tokenizer, "encode", failing)
    monkeypatch.setattr("briton.rpc.generate_handler.LONG_TEXT", 3)  # what is longer is tokenized in a thread
    async with run_fake_engine(FakeExecutor(step_s=0.001), tokenizer=tokenizer) as running:
        calls = [ask("a", request_id="id of a"), ask("b"), ask("cccc", request_id="x" * MAX_REQUEST_ID_LENGTH)]
        await asyncio.gather(*(responses(running.stub, call) for call in calls), return_exceptions=True)
    logger.error("d")
    told = {
        entry["message"][0]: entry.get("request") for entry in map(json.loads, capsys.readouterr().err.splitlines())
    }
    assert told == {"a": "id of a", "b": None, "c": "x" * MAX_REQUEST_ID_LENGTH, "d": None}


async def test_no_tokenizer_no_text() -> None:
    async with run_fake_engine(FakeExecutor()) as running:
        for request, field in (
            (ask("hi"), "text"),
            (ask([1], return_text=True), "return_text"),
            (ask([1], stop=["x"]), "stop"),
        ):
            error = await refusal(running.stub, request)
            assert (error.code(), field_of(error)) == (grpc.StatusCode.UNIMPLEMENTED, field)


async def test_a_long_message_does_not_break_the_transport(served: RunningEngine) -> None:
    """A status travels in headers, and those have a limit."""
    error = await refusal(served.stub, ask(model="é" * 100_000))
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert len((error.details() or "").encode()) <= 1000


async def test_64_requests_on_a_pool_that_fits_4(tokenizer: Tokenizer) -> None:
    info = replace(FAKE_INFO, kv_cache_tokens=4 * 64, max_seq_len=64)
    async with run_fake_engine(FakeExecutor(info), tokenizer=tokenizer) as running:
        requests = [ask([i, i], sampling={"max_tokens": 40}) for i in range(64)]
        answers = await asyncio.gather(*[responses(running.stub, request) for request in requests])
        assert [len(token_ids(answer)) for answer in answers] == [40] * 64


async def test_a_full_queue_says_when_to_come_back() -> None:
    info = replace(FAKE_INFO, max_batch_size=1, max_queue_size=2)
    async with run_fake_engine(FakeExecutor(info, step_s=0.01)) as running:
        calls = [running.stub.Generate(ask([i], sampling={"max_tokens": 1000})) for i in range(3)]
        await until(lambda: running.engine.num_open == 3)
        error = await refusal(running.stub, ask([9]))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() >= 100
        for call in calls:
            call.cancel()


async def test_health_is_told_however_many_calls_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of all calls counted those of the health service: who watched it had a healthy engine ended."""
    monkeypatch.setattr("briton.rpc.service.MAX_OPEN_CALLS", 2)
    async with run_fake_engine(FakeExecutor(step_s=0.01)) as running:
        health = health_pb2_grpc.HealthStub(running.channel)
        watching = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(5)]
        assert [(await call.read()).status for call in watching] == [SERVING] * 5
        calls = [running.stub.Generate(ask([i], sampling={"max_tokens": 1000})) for i in range(2)]
        await until(lambda: running.engine.num_open == 2)
        error = await refusal(running.stub, ask([9]))
        assert (error.code(), error.details()) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "2 calls are open, which is the limit: try again later",
        )
        assert detail(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING
        assert (await running.stub.GetStats(pb.GetStatsRequest())).num_running >= 0
        calls[0].cancel()
        await until(lambda: running.engine.num_open == 1)
        assert token_ids(await responses(running.stub, ask([9])))
        for call in (*watching, calls[1]):
            call.cancel()


async def test_a_failing_sequence_is_a_status(tokenizer: Tokenizer) -> None:
    """A bug is told as such, and not what it was."""
    executor = FakeExecutor(script=lambda request, index: KeyError("secret") if request.priority else None)
    async with run_fake_engine(executor, tokenizer=tokenizer) as running:
        error = await refusal(running.stub, ask(priority=1))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert error.details() == "internal error"
        assert len(token_ids(await responses(running.stub, ask()))) == 8


# Calls that end early.


async def test_cancelling_the_call_frees_the_request_at_once() -> None:
    executor = FakeExecutor(step_s=0.005)
    async with run_fake_engine(executor) as running:
        call = running.stub.Generate(ask([1], request_id="x", sampling={"max_tokens": 2000}))
        await call.read()
        call.cancel()
        await until(lambda: not executor.open_requests(), 0.5)
        assert executor.stats().kv_blocks_used == 0
        assert len(token_ids(await responses(running.stub, ask([1], request_id="x")))) == 8


async def test_a_lost_connection_frees_the_request() -> None:
    executor = FakeExecutor(step_s=0.005)
    async with run_fake_engine(executor) as running:
        with grpc.insecure_channel(running.address) as channel:
            call = pb_grpc.EngineStub(channel).Generate(ask([1], sampling={"max_tokens": 2000}))
            await asyncio.to_thread(next, call)
        await until(lambda: not executor.open_requests(), 0.5)


async def test_the_calls_deadline_frees_the_request() -> None:
    executor = FakeExecutor(step_s=0.005)
    async with run_fake_engine(executor) as running:
        error = await refusal(running.stub, ask([1], sampling={"max_tokens": 2000}), timeout=0.1)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: not executor.open_requests(), 0.5)


async def test_the_servers_deadline() -> None:
    executor = FakeExecutor(step_s=0.005)
    async with run_fake_engine(executor, request_timeout_s=0.1) as running:
        error = await refusal(running.stub, ask([1], sampling={"max_tokens": 2000}))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "0.1 s" in (error.details() or "")
        assert executor.open_requests() == []


async def test_calls_that_end_early_leave_no_noise(caplog: pytest.LogCaptureFixture) -> None:
    """Clients that leave are no errors: nothing is logged above debug, and nothing stays open."""
    executor = FakeExecutor(step_s=0.001)
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with run_fake_engine(executor) as running:

        async def leave(i: int) -> None:
            channel = running.channel if i % 3 else grpc.aio.insecure_channel(running.address, options=options)
            call = pb_grpc.EngineStub(channel).Generate(
                ask([1], sampling={"max_tokens": 2000}), timeout=(None, 0.01, 0.05)[i % 4 % 3]
            )
            with contextlib.suppress(grpc.aio.AioRpcError):
                for _ in range(i % 7 * 5):
                    await call.read()
            call.cancel()
            if i % 3 == 0:
                await channel.close()

        await asyncio.gather(*map(leave, range(42)))
        await until(lambda: not executor.open_requests(), 0.5)
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


# Model info, stats, health, reflection.


async def test_model_info_and_stats(served: RunningEngine) -> None:
    info = await served.stub.GetModelInfo(pb.GetModelInfoRequest())
    assert (info.model_name, info.vocab_size, info.max_seq_len) == ("fake", 264, 2048)
    assert list(info.stop_token_ids) == list(FAKE_INFO.stop_token_ids)
    assert info.default_sampling.HasField("temperature")
    assert not info.default_sampling.HasField("seed")
    assert info.default_max_tokens == 0
    assert info.version
    await responses(served.stub, ask())
    stats = await served.stub.GetStats(pb.GetStatsRequest())
    assert (stats.num_requests, stats.num_output_tokens, stats.num_running) == (1, 8, 0)
    assert stats.kv_blocks_total == FAKE_INFO.kv_cache_tokens // FAKE_INFO.kv_block_size


class _OfTwoRanks(FakeExecutor):
    RANKS = (
        RankStats(0, "left", 11, 1000, 2000, 9000, 500, 4.0, 1.0, 0.25, 0.5),
        RankStats(1, "right", 12, 1001, 2001, 9001, 501, 4.5, 1.5, 0.0, 0.75),
    )

    def stats(self) -> ExecutorStats:
        return replace(super().stats(), ranks=self.RANKS)


async def test_stats_of_ranks() -> None:
    """Every field under its own name; nothing where there is one rank."""
    async with run_fake_engine(_OfTwoRanks()) as running:
        stats = await running.stub.GetStats(pb.GetStatsRequest())
        assert [{f.name: getattr(rank, f.name) for f in rank.DESCRIPTOR.fields} for rank in stats.ranks] == [
            asdict(rank) for rank in _OfTwoRanks.RANKS
        ]
    async with run_fake_engine(FakeExecutor()) as running:
        assert not (await running.stub.GetStats(pb.GetStatsRequest())).ranks


async def health_of(running: RunningEngine, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(running.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


async def until_health(running: RunningEngine, status: int) -> None:
    deadline = time.monotonic() + 5
    while {await health_of(running), await health_of(running, SERVICE)} != {status}:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def test_while_starting_nothing_is_served() -> None:
    server = EngineServer()
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = pb_grpc.EngineStub(channel)
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
        error = await refusal(stub, ask([1]))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "starting" in (error.details() or "")
        assert detail(error, error_details_pb2.RetryInfo) is not None
        with pytest.raises(grpc.aio.AioRpcError, match="starting"):
            await stub.GetModelInfo(pb.GetModelInfoRequest())
    await server.stop(0)


async def test_draining_is_not_healthy_and_finishes() -> None:
    async with run_fake_engine(FakeExecutor(step_s=0.005)) as running:
        await until_health(running, SERVING)
        reading = asyncio.create_task(responses(running.stub, ask([1], sampling={"max_tokens": 60})))
        await until(lambda: running.engine.num_open == 1)
        draining = asyncio.create_task(running.engine.drain(5))
        await until_health(running, NOT_SERVING)
        error = await refusal(running.stub, ask([2]))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert detail(error, error_details_pb2.RetryInfo) is not None
        assert await draining
        assert len(token_ids(await reading)) == 60


async def test_a_dead_executor() -> None:
    executor = FakeExecutor(step_s=0.005)
    async with run_fake_engine(executor) as running:
        reading = asyncio.create_task(refusal(running.stub, ask([1], sampling={"max_tokens": 2000})))
        await until(lambda: running.engine.num_open == 1)
        executor.fail("out of memory")
        error = await reading
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "out of memory" in (error.details() or "")
        await until_health(running, NOT_SERVING)
        assert (await refusal(running.stub, ask([1]))).code() is grpc.StatusCode.UNAVAILABLE


async def test_an_engine_that_is_given_up() -> None:
    """As when another rank has died: the reason reaches every client, though the executor never returns."""
    executor = FakeExecutor(step_s=0.005)
    async with run_fake_engine(executor) as running:
        reading = asyncio.create_task(refusal(running.stub, ask([1], sampling={"max_tokens": 2000})))
        await until(lambda: running.engine.num_open == 1)
        executor.hang()
        running.engine.give_up("rank 1 on right is gone")
        for error in (await reading, await refusal(running.stub, ask([1]))):
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert "rank 1 on right is gone" in (error.details() or "")
        await until_health(running, NOT_SERVING)
        executor.hang(False)


async def test_a_hung_executor_is_not_healthy() -> None:
    executor = FakeExecutor(step_s=0.005)
    async with run_fake_engine(executor, stall=StallLimits(least_s=0.1, give_up_s=60)) as running:
        executor.hang()
        call = running.stub.Generate(ask([1]))
        await until_health(running, NOT_SERVING)
        executor.hang(False)
        await until_health(running, SERVING)
        call.cancel()


async def test_reflection_lists_the_service(served: RunningEngine) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    async for answer in stub.ServerReflectionInfo(iter([question])):
        names = {service.name for service in answer.list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= names
        return


async def test_a_port_in_use_is_refused_in_one_line() -> None:
    first = EngineServer()
    await first.start()
    second = EngineServer(port=first.port)
    with pytest.raises(BritonError, match=rf"^port {first.port} on 127\.0\.0\.1 is in use"):
        await second.start()
    await first.stop(0)


def test_generated_code_is_current(tmp_path: Path) -> None:
    """What `make check` runs, so that a change of the proto cannot go unnoticed."""

    for name in generate(tmp_path):
        assert (ROOT / name).read_bytes() == (tmp_path / name).read_bytes(), name
