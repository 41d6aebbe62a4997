"""The engine in distress: what an HTTP client is told, and when it is told to come back."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
from openai import AsyncOpenAI

from briton.errors import (
    ERROR_TABLE,
    QUEUE_SIZE,
    BritonError,
    DeadlineExceeded,
    EngineDead,
    InvalidRequest,
    QueueFull,
    Unavailable,
    Unsupported,
    WireStatus,
    wire_status_of,
)
from briton.rpc.statuses import status_of
from briton.text.tokenizer import LONG_TEXT, Tokenizer
from briton.v1 import engine_pb2 as pb
from briton.v1.current_request import current_request
from briton_server.engine_errors import EngineFault, error_from_rpc, with_request_field
from tests.processes import free_port
from tests.server.running import MODEL, RunningGateway, run_gateway, settings_of
from tests.server.scripted_engine import (
    NOT_SERVING,
    SERVING,
    ScriptedEngine,
    fails,
    run_scripted_engine,
    says,
    waits,
)

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def serve(engine: ScriptedEngine, tokenizer_dir: Path, **changes: Any) -> AsyncIterator[RunningGateway]:
    async with (
        run_scripted_engine(engine) as address,
        run_gateway(settings_of(tokenizer_dir, address, **changes)) as running,
    ):
        yield running


INVALID = "invalid_request_error"
ERRORS: list[tuple[Exception, int, str | None, str]] = [
    (InvalidRequest("sampling.top_k must be less", "sampling.top_k"), 400, "top_k", INVALID),
    (InvalidRequest("prompt is odd", "prompt", "odd"), 400, "messages", INVALID),
    (Unsupported("not this one", "guide"), 400, "response_format", INVALID),
    (QueueFull("the queue is full", retry_after_s=3), 429, None, "rate_limit_error"),
    (Unavailable("draining", retry_after_s=0.2), 503, None, "service_unavailable_error"),
    (EngineDead("it died", retry_after_s=4), 503, None, "service_unavailable_error"),
    (DeadlineExceeded("too long"), 504, None, "timeout_error"),
    (RuntimeError("a bug"), 500, None, "server_error"),
]
RETRY_AFTER = {"the queue is full": ("3", "3000"), "draining": ("1", "200"), "it died": ("4", "4000")}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_before_the_first_token_has_its_status(tokenizer_dir: Path, stream: bool) -> None:
    engine = ScriptedEngine(waits)
    async with serve(engine, tokenizer_dir) as running:
        for error, status, param, kind in ERRORS:
            engine.generate = fails(error)
            response = await running.post("/v1/chat/completions", {**BODY, "stream": stream})
            told = response.json()["error"]
            assert (response.status_code, told["param"], told["type"]) == (status, param, kind)
            if status == 400:
                assert told["message"] == str(error).replace("sampling.", "").replace("prompt", "messages")
                assert told["code"] == getattr(error, "code", None)
            assert "a bug" not in response.text
            retry_after = RETRY_AFTER.get(str(error), (None, None))
            assert (response.headers.get("retry-after"), response.headers.get("retry-after-ms")) == retry_after


async def test_a_full_engine_is_not_asked_again_at_once(tokenizer_dir: Path) -> None:
    """Under overload templates were rendered and prompts tokenized for requests that got 429 after all."""
    engine = ScriptedEngine(fails(QueueFull("the queue is full", retry_after_s=3, code=QUEUE_SIZE)))
    async with serve(engine, tokenizer_dir) as running:
        answers = [await running.post("/v1/chat/completions", BODY) for _ in range(5)]
        assert {answer.status_code for answer in answers} == {429}
        assert {answer.headers["retry-after"] for answer in answers} == {"3"}
        assert len(engine.requests) < 5
        asked = len(engine.requests)
        engine.generate = says("yes")
        await asyncio.sleep(0.15)
        assert (await running.post("/v1/chat/completions", BODY)).status_code == 200
        assert len(engine.requests) == asked + 1


async def test_what_is_refused_for_its_own_sake_shuts_nobody_out(tokenizer_dir: Path) -> None:
    """One request whose deadline was too short, or whose guide had to wait, had all others refused for 0.1 s."""
    engine = ScriptedEngine(fails(QueueFull("the request would wait for longer than its 0.1 s", retry_after_s=3)))
    async with serve(engine, tokenizer_dir) as running:
        assert (await running.post("/v1/chat/completions", BODY)).status_code == 429
        engine.generate = says("yes")
        assert (await running.post("/v1/chat/completions", BODY)).status_code == 200


async def test_the_official_client_sees_an_error_in_the_middle_of_a_stream(
    tokenizer_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A flat error object, or none, would look like success."""
    engine = ScriptedEngine(says("half", then=EngineDead("it died")))
    async with serve(engine, tokenizer_dir) as running:
        async with running.openai() as client:
            stream = await client.chat.completions.create(**BODY, stream=True)  # type: ignore[call-overload]
            texts: list[str] = []

            async def read() -> None:
                async for chunk in stream:
                    texts.append(chunk.choices[0].delta.content)  # noqa: PERF401

            with pytest.raises(openai.APIError, match="it died"):
                await read()
        response = await running.post("/v1/chat/completions", {**BODY, "stream": True})
    assert "".join(texts) == "half"
    assert response.status_code == 200
    assert "[DONE]" not in response.text
    last = json.loads(response.text.rstrip().rpartition("data: ")[2])
    assert last["error"]["type"] == "service_unavailable_error"
    assert set(last["error"]) == {"message", "type", "param", "code"}
    told = f"request {response.headers['x-request-id']}: the stream ends with an error: it died"
    assert told in [record.message for record in caplog.records if record.levelname == "WARNING"]


async def test_a_call_that_ends_too_early_is_an_error(tokenizer_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def truncated(request: Any, context: Any) -> None:
        await context.write(pb.GenerateResponse(outputs=[pb.SequenceOutput(token_ids=[65])]))

    async with serve(ScriptedEngine(truncated), tokenizer_dir) as running:
        whole = await running.post("/v1/chat/completions", BODY)
        streamed = await running.post("/v1/chat/completions", {**BODY, "stream": True})
    assert whole.status_code == 500
    assert "server_error" in streamed.text
    assert "[DONE]" not in streamed.text
    assert sum("before the answer was complete" in str(record.exc_info) for record in caplog.records) == 2


@pytest.mark.timing
async def test_the_servers_deadline_ends_a_request(tokenizer_dir: Path) -> None:
    engine = ScriptedEngine(waits)
    async with serve(engine, tokenizer_dir, request_timeout_s=0.2) as running:
        started = time.monotonic()
        response = await running.post("/v1/chat/completions", BODY)
        assert time.monotonic() - started < 2
        assert response.status_code == 504
        assert response.headers["x-should-retry"] == "false", "a retry would wait as long again"
        assert response.json()["error"]["type"] == "timeout_error"
        streamed = await running.post("/v1/chat/completions", {**BODY, "stream": True})
        assert streamed.status_code == 504


async def test_silence_is_filled_with_comments(tokenizer_dir: Path) -> None:
    """A long prefill: comments keep proxies awake, the client does not see them, errors now come as events."""
    async with serve(ScriptedEngine(waits), tokenizer_dir, request_timeout_s=0.5, keepalive_s=0.1) as running:
        response = await running.post("/v1/chat/completions", {**BODY, "stream": True})
        assert response.status_code == 200
        assert response.text.startswith(": keep-alive\n\n: keep-alive\n\n")
        assert "timeout_error" in response.text
        async with running.openai() as client:
            stream = await client.chat.completions.create(**BODY, stream=True)  # type: ignore[call-overload]
            with pytest.raises(openai.APIError, match="deadline"):
                await stream.__anext__()


async def test_requests_are_refused_until_the_engine_serves(tokenizer_dir: Path) -> None:
    engine = ScriptedEngine(says("now"))
    engine.health = NOT_SERVING
    async with (
        run_scripted_engine(engine) as address,
        run_gateway(settings_of(tokenizer_dir, address), wait_ready=False) as running,
    ):
        assert (await running.http.get("/live")).status_code == 200
        for path in ("/ready", "/health"):
            response = await running.http.get(path)
            assert response.status_code == 503
            assert response.json()["reason"]
        refused = await running.post("/v1/chat/completions", BODY)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        engine.health = SERVING
        await running.ready()
        assert (await running.http.get("/health")).status_code == 200
        assert (await running.post("/v1/chat/completions", BODY)).status_code == 200


async def test_an_engine_that_restarts_is_found_again(tokenizer_dir: Path) -> None:
    port = free_port()
    async with run_gateway(settings_of(tokenizer_dir, f"127.0.0.1:{port}"), wait_ready=False) as running:
        for _ in range(2):
            async with run_scripted_engine(ScriptedEngine(says("up")), port):
                await running.ready()
                assert (await running.post("/v1/chat/completions", BODY)).status_code == 200
            refused = await running.post("/v1/chat/completions", BODY)
            assert refused.status_code == 503
            assert "retry-after" in refused.headers
            await running.ready(False)
            async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
                with pytest.raises(openai.InternalServerError):
                    await client.chat.completions.create(**BODY)  # type: ignore[call-overload]


async def test_an_engine_with_another_tokenizer_is_not_used(
    tokenizer_dir: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    engine = ScriptedEngine(says("x"), tokenizer_hash="0123456789abcdef")
    async with (
        run_scripted_engine(engine) as address,
        run_gateway(settings_of(tokenizer_dir, address), wait_ready=False) as running,
    ):
        for _ in range(100):
            response = await running.http.get("/ready")
            if "0123456789ab" in response.json()["reason"]:
                break
        assert response.status_code == 503
        assert tokenizer.hash[:12] in response.json()["reason"]
        assert (await running.post("/v1/chat/completions", BODY)).status_code == 503
        engine.tokenizer_hash = tokenizer.hash
        await running.ready()


@pytest.mark.parametrize(("kind", "wire"), ERROR_TABLE, ids=lambda value: getattr(value, "__name__", ""))
def test_the_table_is_walked_both_ways(kind: type[BritonError], wire: WireStatus) -> None:
    """What the engine says of an error is that error again: its type, its message, and all that it carries."""
    data = {"field": "sampling.top_p", "code": "context_length_exceeded", "retry_after_s": 3.25}
    error = kind("what is wrong", **{field.name: data[field.name] for field in fields(kind) if field.name in data})
    status = status_of(error)
    assert status.code is grpc.StatusCode[wire.grpc_code]
    told = grpc.aio.AioRpcError(
        status.code, grpc.aio.Metadata(), grpc.aio.Metadata(*status.trailing_metadata), status.details
    )
    back = error_from_rpc(told)
    assert type(back) is kind
    assert (asdict(back), wire_status_of(back)) == (asdict(error), wire)


def test_what_the_table_does_not_know() -> None:
    known = {wire.grpc_code for _, wire in ERROR_TABLE}
    assert len(known) == len(ERROR_TABLE), "a code stands for one error"
    for code in grpc.StatusCode:
        error = error_from_rpc(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "ipv4:1.2.3.4:5"))
        if code is grpc.StatusCode.CANCELLED:
            assert type(error) is Unavailable
        else:
            assert isinstance(error, EngineFault) is (code.name not in known)
    for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
        error = error_from_rpc(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "ipv4:1.2.3.4:5"))
        assert "1.2.3.4" not in str(error), "gRPC's own words are of sockets"


async def test_a_field_is_named_as_the_request_spells_it() -> None:
    names = {"prompt": "messages", "guide": "guided_regex"}

    def told(error: InvalidRequest | Unsupported) -> tuple[str, str | None]:
        renamed = with_request_field(error, names)
        return str(renamed), renamed.field

    assert told(InvalidRequest("guide.regex is wrong", "guide.regex")) == (
        "guided_regex.regex is wrong",
        "guided_regex.regex",
    )
    assert told(InvalidRequest("sampling.n must be 1", "sampling.n")) == ("n must be 1", "n")
    assert told(Unsupported("guides are off", "guide")) == ("guides are off", "guided_regex")
    assert told(InvalidRequest("prompts differ", "prompts")) == ("prompts differ", "prompts")
    assert told(InvalidRequest("no")) == ("no", None)


async def test_the_answer_says_where_the_time_went(tokenizer_dir: Path) -> None:
    async with serve(ScriptedEngine(says("x")), tokenizer_dir) as running:
        response = await running.post("/v1/chat/completions", BODY)
        scraped: httpx.Response = await running.http.get("/metrics")
    assert response.headers["server-timing"] == "queue;dur=250.0, prefill;dur=500.0, decode;dur=1000.0"
    assert response.json()["usage"]["timings"] == {"queue_s": 0.25, "prefill_s": 0.5, "decode_s": 1}
    assert 'briton_queue_seconds_bucket{le="0.25"} 1.0' in scraped.text
    assert "briton_time_to_first_token_seconds_sum 0.75" in scraped.text
    assert "briton_engine_running_sequences 3.0" in scraped.text
    assert "briton_engine_output_tokens_total 1234.0" in scraped.text


async def test_the_engine_logs_the_clients_request_id(tokenizer_dir: Path) -> None:
    engine = ScriptedEngine(says("x"))
    async with serve(engine, tokenizer_dir) as running:
        for _ in range(2):
            await running.post("/v1/chat/completions", BODY, **{"x-request-id": "mine"})
    ids = [request.request_id for request in engine.requests]
    assert all(request_id.startswith("mine/") for request_id in ids)
    assert len(set(ids)) == 2


async def test_log_lines_of_the_gateway_know_their_request(
    tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, told = ScriptedEngine(says("x")), dict[str, str]()
    encode = Tokenizer.encode

    def telling(tokenizer: Tokenizer, text: str, **options: Any) -> list[int]:
        told[text] = current_request.get()
        return encode(tokenizer, text, **options)

    monkeypatch.setattr(Tokenizer, "encode", telling)
    async with serve(engine, tokenizer_dir) as running:
        calls = [("one", "a"), ("two" * LONG_TEXT, "b")]
        for prompt, request_id in calls:
            await running.post("/v1/completions", {"prompt": prompt}, **{"x-request-id": request_id})
    assert [told[prompt] for prompt, _ in calls] == ["a", "b"]
    assert current_request.get() == ""
