"""The loop's promises that the conformance class cannot ask of every executor."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from briton.errors import EngineDead, InvalidRequest, QueueFull
from briton.local.executor import LocalExecutor
from briton.local.plan import StepInputs
from briton.types import FinishReason, GenerationRequest, SamplingParams, TokenChunk
from tests.local.paged_model import PagedModel, greedy, model_info

GREEDY = SamplingParams(max_tokens=8, temperature=0)


class Gate:
    """A model that waits before each step until it is let go."""

    def __init__(self, model: PagedModel) -> None:
        self._model = model
        self.open = threading.Event()
        self.broken = False

    def forward(self, inputs: StepInputs) -> NDArray[np.float32]:
        assert self.open.wait(10)
        if self.broken:
            raise RuntimeError("out of memory in layer 3")
        return self._model.forward(inputs)


def start(gate: bool = False, chunked: bool = True, **limits: int) -> tuple[LocalExecutor, Gate]:
    info = model_info(**limits)
    model = Gate(PagedModel(info.kv_cache_tokens // info.kv_block_size, info.kv_block_size))
    if not gate:
        model.open.set()
    return LocalExecutor(info, model.forward, policy="guaranteed_no_evict", enable_chunked_context=chunked), model


def collect(executor: LocalExecutor, num_requests: int, seconds: float = 10) -> list[TokenChunk]:
    chunks: list[TokenChunk] = []
    deadline = time.monotonic() + seconds
    while sum(c.is_final for c in chunks) < num_requests:
        assert time.monotonic() < deadline, chunks
        chunks += executor.await_chunks(0.1)
    return chunks


def test_64_requests_on_a_cache_that_holds_4() -> None:
    executor, _ = start(num_blocks=16)  # 4 x (8 + 8) tokens
    prompts = [tuple(range(i % 40 + 1, i % 40 + 9)) for i in range(64)]
    for i, prompt in enumerate(prompts):
        executor.submit(GenerationRequest(i, prompt, GREEDY))
    chunks = collect(executor, 64)
    for i, prompt in enumerate(prompts):
        assert [t for c in chunks if c.request_id == i for t in c.token_ids] == greedy(prompt, 8)
    assert executor.stats().kv_blocks_used == 0
    executor.shutdown()


def test_a_failing_step_ends_every_open_request_once() -> None:
    executor, model = start(gate=True)
    for i in range(3):
        executor.submit(GenerationRequest(i, (1, 2, 3), GREEDY))
    model.broken = True
    model.open.set()
    chunks = collect(executor, 3)
    assert sorted(c.request_id for c in chunks) == [0, 1, 2]
    assert {c.finish_reason for c in chunks} == {FinishReason.ERROR}
    assert all("out of memory in layer 3" in str(c.error) for c in chunks)
    with pytest.raises(EngineDead, match="layer 3"):
        executor.await_chunks(1)
    with pytest.raises(EngineDead):
        executor.submit(GenerationRequest(9, (1,), GREEDY))


def test_queue_full_says_the_limit_and_accepts_nothing() -> None:
    executor, model = start(gate=True, max_queue_size=2, max_batch_size=1)
    executor.submit(GenerationRequest(0, (1, 2, 3), GREEDY))
    while executor.stats().num_running == 0:
        time.sleep(0.001)
    executor.submit(GenerationRequest(1, (1, 2, 3), GREEDY))
    executor.submit(GenerationRequest(2, (1, 2, 3), GREEDY))
    with pytest.raises(QueueFull, match="2 requests are waiting"):
        executor.submit(GenerationRequest(3, (1, 2, 3), GREEDY))
    model.open.set()
    assert {c.request_id for c in collect(executor, 3)} == {0, 1, 2}
    executor.shutdown()


def test_cancelling_a_waiting_request() -> None:
    executor, model = start(gate=True, max_batch_size=1)
    executor.submit(GenerationRequest(0, (1, 2, 3), GREEDY))
    executor.submit(GenerationRequest(1, (1, 2, 3), GREEDY))
    executor.cancel(1)
    executor.cancel(1)
    executor.cancel(77)
    model.open.set()
    chunks = collect(executor, 2)
    assert [c.finish_reason for c in chunks if c.request_id == 1] == [FinishReason.CANCELLED]
    assert executor.stats().num_waiting == 0
    executor.shutdown()


def test_shutdown_ends_requests_that_were_never_seen_by_the_loop() -> None:
    executor, model = start(gate=True)
    executor.submit(GenerationRequest(0, (1, 2, 3), GREEDY))
    stopper = threading.Thread(target=executor.shutdown)
    stopper.start()
    model.open.set()
    stopper.join(10)
    chunks = collect(executor, 1)
    assert chunks[-1].is_final
    with pytest.raises(EngineDead, match="shut down"):
        executor.submit(GenerationRequest(1, (1,), GREEDY))


def test_unstreamed_request_gives_one_chunk() -> None:
    executor, _ = start()
    executor.submit(GenerationRequest(0, (1, 2, 3), GREEDY, stream=False))
    (chunk,) = collect(executor, 1)
    assert list(chunk.token_ids) == greedy((1, 2, 3), 8)
    assert chunk.timings is not None
    executor.shutdown()


def test_without_chunked_context_a_longer_prompt_is_refused() -> None:
    executor, _ = start(chunked=False)
    with pytest.raises(InvalidRequest, match="limit is max_num_tokens = 16") as caught:
        executor.submit(GenerationRequest(0, tuple(range(1, 18)), GREEDY))
    assert caught.value.field == "prompt"
    executor.shutdown()


def test_stats_count_tokens() -> None:
    executor, _ = start()
    prompt = tuple(range(1, 12))
    for i in range(2):
        executor.submit(GenerationRequest(i, prompt, GREEDY))
        collect(executor, 1)
    stats = executor.stats()
    assert stats.num_requests == 2
    assert stats.num_cached_tokens == 8
    assert stats.num_prompt_tokens == 11 + 3
    assert stats.num_output_tokens == 2 * len(greedy(prompt, 8))
    assert 0 < stats.host_s <= stats.step_s
    executor.shutdown()
