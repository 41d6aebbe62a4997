"""The loop's promises that the conformance class cannot ask of every executor."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typing_extensions import Self

from briton.engine.types import FinishReason, GenerationRequest, RankStats, SamplingParams, TokenChunk
from briton.errors import QUEUE_SIZE, EngineDead, InvalidRequest, QueueFull
from briton.local.executor import LocalExecutor
from briton.local.plan import StepInputs
from briton.local.sequence import SequenceState
from briton.local.settings import SchedulerPolicy
from tests.local.paged_model import PagedModel, greedy, model_info
from tests.scripted_guide import ScriptedGuide

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


def start(
    gate: bool = False, chunked: bool = True, policy: SchedulerPolicy = "guaranteed_no_evict", **limits: int
) -> tuple[LocalExecutor, Gate]:
    info = model_info(**limits)
    model = Gate(PagedModel(info.kv_cache_tokens // info.kv_block_size, info.kv_block_size))
    if not gate:
        model.open.set()
    return LocalExecutor(info, model.forward, policy=policy, enable_chunked_context=chunked), model


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
    for i in range(2, 5):  # twice the limit: what is above it is admission's to share out among callers
        executor.submit(GenerationRequest(i, (1, 2, 3), GREEDY))
    with pytest.raises(QueueFull, match="4 requests are waiting") as refusal:
        executor.submit(GenerationRequest(5, (1, 2, 3), GREEDY))
    assert refusal.value.code == QUEUE_SIZE
    model.open.set()
    assert {c.request_id for c in collect(executor, 5)} == {0, 1, 2, 3, 4}
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


class BrokenGuide(ScriptedGuide):
    """Fails where it is told to."""

    broken = ""

    def copy(self) -> Self:
        if self.broken == "copy":
            raise MemoryError("no room for a copy")
        twin = super().copy()
        twin.broken = self.broken
        return twin

    def is_terminated(self) -> bool:
        if self.broken == "is_terminated":
            raise RuntimeError("lost its place")
        return super().is_terminated()


def test_a_guide_that_cannot_be_copied_fails_its_own_request() -> None:
    """The loop made the copy: its failure ended every request, and the guide's own never had a final chunk."""
    executor, _ = start()
    guide = BrokenGuide([{1}], [0])
    guide.broken = "copy"
    with pytest.raises(MemoryError):
        executor.submit(GenerationRequest(0, (1, 2), GREEDY, guide))
    executor.submit(GenerationRequest(1, (1, 2), GREEDY))
    assert {c.request_id for c in collect(executor, 1)} == {1}
    executor.shutdown()


def test_a_guide_that_fails_after_its_token_ends_its_own_request_alone() -> None:
    """is_terminated was asked outside the sampler's guard, and its failure ended the executor."""
    executor, model = start(gate=True)
    guide = BrokenGuide([{1}], [0])
    guide.broken = "is_terminated"
    executor.submit(GenerationRequest(0, (1, 2, 3), GREEDY))
    executor.submit(GenerationRequest(1, (1, 2, 3), GREEDY, guide))
    model.open.set()
    chunks = collect(executor, 2)
    assert [t for c in chunks if c.request_id == 0 for t in c.token_ids] == greedy((1, 2, 3), 8)
    (failed,) = [c for c in chunks if c.request_id == 1]
    assert failed.finish_reason is FinishReason.ERROR
    assert "lost its place" in str(failed.error)
    executor.shutdown()


@pytest.mark.parametrize(("prompt", "num_allowed"), [((7, 8, 9), 4), (tuple(range(1, 9)), 1)])
def test_a_sibling_that_ends_in_the_middle_of_a_step_keeps_its_rows(prompt: tuple[int, ...], num_allowed: int) -> None:
    """A sequence ended by its sibling's error was asked again whether it samples, and said no, for it had no computed
    tokens any more: the next sequence of the step got its logits. Where it had computed a block of tokens, they were
    booked in blocks that it no longer had, and the engine died."""
    info = model_info()
    model = PagedModel(info.kv_cache_tokens // info.kv_block_size, info.kv_block_size)
    later = (1, 2, 3)

    def forward(inputs: StepInputs) -> NDArray[np.float32]:
        if len(model.num_tokens_seen) == 1:  # the siblings run from now on: this one is behind them in every step
            executor.submit(GenerationRequest(1, later, GREEDY))
        return model.forward(inputs)

    executor = LocalExecutor(info, forward, policy="guaranteed_no_evict")
    guide = ScriptedGuide([*[{5}] * num_allowed, set()], info.stop_token_ids)
    executor.submit(GenerationRequest(0, prompt, replace(GREEDY, n=2), guide))
    chunks = collect(executor, 2)
    assert [c.finish_reason for c in chunks if c.request_id == 0 and c.is_final] == [FinishReason.ERROR]
    assert [t for c in chunks if c.request_id == 1 for t in c.token_ids] == greedy(later, 8)
    assert executor.stats().kv_blocks_used == 0
    executor.shutdown()


def test_who_ended_before_a_step_broke_keeps_its_final_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a step were sent when all of it was booked: a failure on the way lost the finished requests'."""
    executor, model = start(gate=True)
    append = executor._loop.output.append

    def breaks_at_the_second(sequence: SequenceState, sampled: Any) -> Any:
        if sequence.request.request_id == 1:
            raise RuntimeError("the books are wet")
        return append(sequence, sampled)

    monkeypatch.setattr(executor._loop.output, "append", breaks_at_the_second)
    for i in range(2):
        executor.submit(GenerationRequest(i, (1, 2, 3), SamplingParams(max_tokens=1, temperature=0)))
    model.open.set()
    reasons = {c.request_id: c.finish_reason for c in collect(executor, 2)}
    assert reasons[0] in (FinishReason.LENGTH, FinishReason.STOP)
    assert reasons[1] is FinishReason.ERROR


def test_the_queue_time_counts_from_submit() -> None:
    """It counted from the end of the step during which a request came."""
    executor, model = start(gate=True)
    executor.submit(GenerationRequest(0, (1, 2, 3), GREEDY))
    while executor.stats().num_running == 0:
        time.sleep(0.001)
    executor.submit(GenerationRequest(1, (1, 2, 3), GREEDY))
    time.sleep(0.1)
    model.open.set()
    (final,) = [c for c in collect(executor, 2) if c.request_id == 1 and c.is_final]
    assert final.timings is not None
    assert final.timings.queue_s >= 0.1
    executor.shutdown()


def test_a_cancellation_does_not_reach_a_later_request_of_the_same_id() -> None:
    """Cancellations were carried out after the inbox was taken in, in whatever order both had come."""
    executor, model = start(gate=True)
    executor.submit(GenerationRequest(0, (1, 2, 3), GREEDY))
    while executor.stats().num_running == 0:
        time.sleep(0.001)
    executor.cancel(5)
    executor.submit(GenerationRequest(5, (1, 2, 3), GREEDY))
    model.open.set()
    chunks = collect(executor, 2)
    assert [t for c in chunks if c.request_id == 5 for t in c.token_ids] == greedy((1, 2, 3), 8)
    executor.shutdown()


def test_a_salt_of_half_a_character_harms_nobody() -> None:
    """A lone surrogate in cache_salt raised in the loop, and ended every request."""
    executor, _ = start()
    for i in range(2):
        executor.submit(GenerationRequest(i, (1, 2, 3, 4, 5), GREEDY, cache_salt="\ud800"))
        final = collect(executor, 1)[-1]
        assert final.finish_reason is not FinishReason.ERROR
        assert final.cached_tokens == 4 * i
    executor.shutdown()


def test_shutdown_frees_the_model() -> None:
    """An executor that was shut down kept its model and KV cache as long as anybody kept the executor."""
    executor, model = start()
    executor.submit(GenerationRequest(0, (1, 2, 3), GREEDY))
    collect(executor, 1)
    kept = weakref.ref(model)
    executor.shutdown()
    del model
    gc.collect()
    assert kept() is None
    assert executor.stats().num_requests == 1


def test_preemption_changes_no_draw_penalty_or_guide() -> None:
    """What a sequence draws, counts and may say next outlives its blocks."""
    guide = ScriptedGuide([set(range(i % 3 + 1, 60, 3)) for i in range(20)], [0])
    sampling = SamplingParams(max_tokens=20, ignore_eos=True, frequency_penalty=1.5, repetition_penalty=1.3)
    requests = [
        GenerationRequest(
            i, tuple(range(i + 1, i + 9)), replace(sampling, seed=i, n=1 + i % 2), guide if i % 3 else None
        )
        for i in range(9)
    ]

    def outputs(together: bool) -> dict[tuple[int, int], list[int]]:
        executor, _ = start(policy="max_utilization", num_blocks=16)
        chunks: list[TokenChunk] = []
        for request in requests:
            executor.submit(request)
            chunks += [] if together else collect(executor, 1)
        chunks += collect(executor, len(requests)) if together else []
        assert (executor.stats().num_preemptions > 0) == together
        executor.shutdown()
        tokens: dict[tuple[int, int], list[int]] = {}
        for chunk in chunks:
            tokens.setdefault((chunk.request_id, chunk.index), []).extend(chunk.token_ids)
        return tokens

    assert outputs(together=True) == outputs(together=False)


@pytest.mark.parametrize("broken", [False, True])
def test_other_ranks_are_let_go_after_the_last_step_but_not_after_a_failure(broken: bool) -> None:
    """By the thread that computes. After a failure they may wait in the middle of a step: nothing can be said."""
    info = model_info()
    model = Gate(PagedModel(info.kv_cache_tokens // info.kv_block_size, info.kv_block_size))
    model.open.set()
    model.broken = broken
    closed: list[str] = []
    executor = LocalExecutor(
        info,
        model.forward,
        policy="guaranteed_no_evict",
        close=lambda: closed.append(threading.current_thread().name),
    )
    executor.submit(GenerationRequest(0, (1, 2, 3), GREEDY))
    collect(executor, 1)
    assert closed == []
    executor.shutdown()
    executor.shutdown()
    assert closed == ([] if broken else ["briton-local-executor"])


def test_stats_of_ranks_are_asked_for_each_time() -> None:
    info = model_info()
    said = [(RankStats(0),), (RankStats(0, step_s=1.0), RankStats(1))]
    executor = LocalExecutor(info, PagedModel(1, 1).forward, policy="guaranteed_no_evict", rank_stats=lambda: said[-1])
    assert executor.stats().ranks == said[1]
    said.pop()
    assert executor.stats().ranks == said[0]
    executor.shutdown()
