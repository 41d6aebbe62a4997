"""Whom a request is for, and what it promised, as the executor learns it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import grpc
import pytest

from briton.errors import QueueFull
from briton.rpc.statuses import abort
from briton.v1 import engine_pb2 as pb
from tests.fake_engine import run_fake_engine
from tests.fake_executor import FAKE_INFO, FakeExecutor


@pytest.mark.parametrize(
    ("fields", "caller"),
    [
        ({}, ""),
        ({"cache_salt": "tenant 7"}, "tenant 7"),
        ({"cache_salt": "tenant 7", "caller": "ann"}, "ann"),
    ],
    ids=["nobody", "salt", "caller"],
)
async def test_callers_are_told_apart_by_name_else_by_salt(fields: dict[str, str], caller: str) -> None:
    executor = FakeExecutor()
    async with run_fake_engine(executor) as running:
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2]), sampling=pb.SamplingParams(max_tokens=1))
        for name, value in fields.items():
            setattr(request, name, value)
        async for _ in running.stub.Generate(request):
            pass
        assert executor.submitted[-1].caller == caller


async def test_a_caller_of_any_length_is_not_taken() -> None:
    async with run_fake_engine(FakeExecutor()) as running:
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1]), caller="x" * 257)
        with pytest.raises(grpc.aio.AioRpcError, match="caller has 257 characters; the limit is 256"):
            async for _ in running.stub.Generate(request):
                pass


@pytest.mark.parametrize("max_tokens", [None, 3])
async def test_only_what_a_caller_asked_for_is_a_promise(max_tokens: int | None) -> None:
    executor = FakeExecutor()
    async with run_fake_engine(executor) as running:
        sampling = pb.SamplingParams() if max_tokens is None else pb.SamplingParams(max_tokens=max_tokens)
        request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2]), sampling=sampling)
        call = running.stub.Generate(request)
        async for _ in call:
            break
        call.cancel()
        assert executor.submitted[-1].has_limit == (max_tokens is not None)


async def test_a_refusal_comes_before_the_prompt_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under overload the cores that the model needs were spent on requests that got 429."""
    executor = FakeExecutor(replace(FAKE_INFO, max_batch_size=1, max_queue_size=1), step_s=0.01)
    async with run_fake_engine(executor) as running:
        long = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1]), sampling=pb.SamplingParams(max_tokens=500))
        calls = [running.stub.Generate(long) for _ in range(2)]
        for _ in range(200):
            if running.engine.num_open == 2:
                break
            await asyncio.sleep(0.01)
        monkeypatch.setattr(
            type(running.engine), "submit", lambda *_, **__: pytest.fail("it was worked on before it was refused")
        )
        with pytest.raises(grpc.aio.AioRpcError, match="1 requests are waiting, and the limit is 1") as refused:
            async for _ in running.stub.Generate(pb.GenerateRequest(text="hello" * 20)):
                pass
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for call in calls:
            call.cancel()


async def test_who_has_gone_when_a_refusal_is_sent_is_not_logged() -> None:
    """gRPC logged a traceback when the status of a refused call could not be sent any more."""

    class Gone:
        async def abort(self, *_: object) -> None:
            raise RuntimeError("Failed execute_batch: SendStatusFromServerOperation")

    with pytest.raises(asyncio.CancelledError):
        await abort(cast("grpc.aio.ServicerContext[Any, Any]", Gone()), QueueFull("full"))
