"""Many requests at once: all are answered, or told to come back; none waits for nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from briton.engine.types import GenerationRequest
from tests.fake_executor import FAKE_INFO, FakeExecutor
from tests.server.conftest import Serve
from tests.server.running import MODEL


def mirror(request: GenerationRequest, index: int) -> list[int]:
    """Says the prompt again."""
    return [*request.prompt_token_ids]


def body(i: int, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": f"request {i}", "max_tokens": 40, **fields}


async def test_sixty_four_requests_at_once_on_a_pool_that_fits_four(serve: Serve) -> None:
    info = replace(FAKE_INFO, max_batch_size=4, kv_cache_tokens=256)
    async with serve(FakeExecutor(info, script=mirror, step_s=0.001)) as running:
        answers = await asyncio.gather(
            *(running.post("/v1/completions", body(i, stream=i % 2 == 1)) for i in range(64))
        )
    for i, answer in enumerate(answers):
        assert answer.status_code == 200
        if i % 2:
            assert answer.text.endswith("data: [DONE]\n\n")
        else:
            assert answer.json()["choices"][0]["text"] == f"request {i}"


async def test_a_full_queue_says_when_to_come_back(serve: Serve) -> None:
    info = replace(FAKE_INFO, max_batch_size=1, max_queue_size=2)
    async with serve(FakeExecutor(info, script=mirror, step_s=0.02)) as running:
        answers = await asyncio.gather(*(running.post("/v1/completions", body(i, stream=True)) for i in range(12)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "rate_limit_error"
        else:
            assert answer.text.endswith("data: [DONE]\n\n")
