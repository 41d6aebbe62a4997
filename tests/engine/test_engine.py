"""Engine: every accepted request ends, whatever the consumer, the clock or the executor does."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from briton.engine.engine import Engine, EngineState
from briton.engine.ledger import Ledger, LedgerEntry
from briton.engine.request_stream import RequestStream
from briton.engine.types import FinishReason, GenerationRequest, SamplingParams, StepProgress, TokenChunk
from briton.engine.watchdog import StallLimits
from briton.errors import DeadlineExceeded, EngineDead, InvalidRequest, QueueFull, Unavailable, Unsupported
from briton.guidance.guide import Guide, GuideSpec
from tests.fake_executor import FAKE_INFO, FakeExecutor
from tests.scripted_guide import ScriptedGuide

PROMPT = (1, 2, 3)
CHOICE = GuideSpec("choice", choices=("ab",))


def greedy(max_tokens: int = 8, **options: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, **options)


@asynccontextmanager
async def running(executor: FakeExecutor, **options: object) -> AsyncIterator[Engine]:
    engine = Engine(executor, **options)  # type: ignore[arg-type]
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def collect(stream: RequestStream) -> list[TokenChunk]:
    with stream:
        return [chunk async for chunks in stream for chunk in chunks]


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def tokens(chunks: list[TokenChunk]) -> tuple[int, ...]:
    return tuple(token_id for chunk in chunks for token_id in chunk.token_ids)


async def test_a_request_ends_with_its_final_chunk() -> None:
    async with running(FakeExecutor()) as engine:
        chunks = await collect(await engine.submit(PROMPT, greedy(5)))
        assert len(tokens(chunks)) == 5
        assert [chunk.is_final for chunk in chunks].count(True) == 1
        assert chunks[-1].finish_reason is FinishReason.LENGTH
        assert engine.num_open == 0


async def test_many_requests_keep_their_own_tokens() -> None:
    async with running(FakeExecutor(step_s=0.001)) as engine:
        prompts = [(i, i + 1) for i in range(40)]
        alone = [tokens(await collect(await engine.submit(prompt, greedy(6)))) for prompt in prompts]
        streams = [await engine.submit(prompt, greedy(6)) for prompt in prompts]
        together = await asyncio.gather(*map(collect, streams))
        assert [tokens(chunks) for chunks in together] == alone
        assert len(set(alone)) > 30


class _EagerExecutor(FakeExecutor):
    """Its chunks are out before submit returns."""

    def submit(self, request: GenerationRequest) -> None:
        super().submit(request)
        time.sleep(0.05)


async def test_chunks_may_come_before_submit_returns() -> None:
    async with running(_EagerExecutor()) as engine:
        assert len(tokens(await collect(await engine.submit(PROMPT, greedy(3))))) == 3


async def test_chunks_of_a_slow_consumer_are_joined() -> None:
    async with running(FakeExecutor(step_s=0.002)) as engine:
        with await engine.submit(PROMPT, greedy(20)) as stream:
            await until(lambda: engine.num_open == 0)
            looks = [chunks async for chunks in stream]
        assert len(looks) == 1
        assert len(tokens(looks[0])) == 20


async def test_one_handover_for_a_step_of_many_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per-token overhead: the loop is woken once a step, not once a token."""
    executor = FakeExecutor(step_s=0.01)
    async with running(executor) as engine:
        batches: list[int] = []
        deliver = engine._deliver

        def counted(chunks: list[TokenChunk]) -> None:
            batches.append(len(chunks))
            deliver(chunks)

        monkeypatch.setattr(engine, "_deliver", counted)
        await asyncio.gather(*[collect(await engine.submit((i,), greedy(5))) for i in range(16)])
        assert max(batches) == 16
        assert len(batches) < 16


# The consumer goes away.


async def test_closing_the_stream_cancels_at_once() -> None:
    executor = FakeExecutor(step_s=0.005)
    async with running(executor) as engine:
        with await engine.submit(PROMPT, greedy(1000)) as stream:
            await stream.__anext__()
        assert executor.cancelled == [stream.request_id]
        await until(lambda: engine.num_open == 0)
        stream.close()
        assert executor.cancelled == [stream.request_id]


async def test_a_cancelled_consumer_cancels_its_request() -> None:
    executor = FakeExecutor(step_s=0.005)
    async with running(executor) as engine:
        stream = await engine.submit(PROMPT, greedy(1000))
        task = asyncio.create_task(collect(stream))
        await asyncio.sleep(0.03)
        task.cancel()
        await asyncio.wait({task})
        assert executor.cancelled == [stream.request_id]
        assert executor.open_requests() == []


async def test_finish_waits_for_the_final_chunk() -> None:
    executor = FakeExecutor(step_s=0.005)
    async with running(executor) as engine:
        stream = await engine.submit(tuple(range(70)), greedy(1000))
        chunks = []
        with stream:
            async for new in stream:
                chunks += new
                stream.finish()
                stream.finish()
        assert chunks[-1].is_final
        assert chunks[-1].finish_reason is FinishReason.CANCELLED
        assert chunks[-1].timings is not None
        assert executor.cancelled == [stream.request_id]


# Refusals and errors.


async def test_refused_requests_are_not_open() -> None:
    async with running(FakeExecutor(replace(FAKE_INFO, max_queue_size=1, max_batch_size=1), step_s=0.01)) as engine:
        with pytest.raises(InvalidRequest):
            await engine.submit((), greedy())
        streams = [await engine.submit(PROMPT, greedy(50)) for _ in range(2)]
        with pytest.raises(QueueFull):
            await engine.submit(PROMPT, greedy())
        assert engine.num_open == 2
        for stream in streams:
            stream.close()


async def test_an_error_chunk_is_raised() -> None:
    executor = FakeExecutor(script=lambda request, index: ValueError("scripted") if request.priority else None)
    async with running(executor) as engine:
        beside = await engine.submit(PROMPT, greedy(20))
        with pytest.raises(ValueError, match="scripted"):
            await collect(await engine.submit(PROMPT, greedy(n=2), priority=1))
        assert len(tokens(await collect(beside))) == 20
        assert engine.num_open == 0


async def test_one_failing_sequence_ends_its_siblings() -> None:
    """A sequence that fails while others of its request go on must not leave them running."""
    executor = FakeExecutor(step_s=0.005)
    async with running(executor) as engine:
        stream = await engine.submit(PROMPT, greedy(1000, n=2))
        failed = TokenChunk(stream.request_id, 1, finish_reason=FinishReason.ERROR, error=ValueError("stuck"))
        engine._deliver([failed])
        with pytest.raises(ValueError, match="stuck"):
            await collect(stream)
        assert executor.cancelled == [stream.request_id]


# Deadlines.


async def test_deadline_of_the_request() -> None:
    executor = FakeExecutor(step_s=0.005)
    async with running(executor) as engine:
        stream = await engine.submit(PROMPT, greedy(1000), timeout_s=0.05)
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
            await collect(stream)
        assert executor.cancelled == [stream.request_id]


async def test_deadline_of_the_server_is_the_shorter() -> None:
    async with running(FakeExecutor(step_s=0.005), request_timeout_s=0.05) as engine:
        with pytest.raises(DeadlineExceeded):
            await collect(await engine.submit(PROMPT, greedy(1000), timeout_s=60))


async def test_a_deadline_in_the_past_runs_nothing() -> None:
    executor = FakeExecutor()
    async with running(executor) as engine:
        with pytest.raises(DeadlineExceeded):
            await engine.submit(PROMPT, greedy(), timeout_s=0)
        assert executor.submitted == []


# Guides.


class _Compiler:
    """Compiles "ab", after `gate` was set."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.specs: list[GuideSpec] = []

    async def compile(self, spec: GuideSpec, *, caller: str) -> Guide:
        self.specs.append(spec)
        await self.gate.wait()
        if not spec.choices:
            raise Unsupported("choice of nothing", "guide.choice")
        return ScriptedGuide([{ord("a")}, {ord("b")}], FAKE_INFO.stop_token_ids)


async def test_guide_is_compiled_before_the_request_runs() -> None:
    executor, compiler = FakeExecutor(), _Compiler()
    async with running(executor, compiler=compiler) as engine:
        submitting = asyncio.ensure_future(engine.submit(PROMPT, greedy(), guide=CHOICE))
        await asyncio.sleep(0.02)
        assert executor.submitted == []
        assert len(tokens(await collect(await engine.submit(PROMPT, greedy(3))))) == 3  # others go on meanwhile
        compiler.gate.set()
        assert bytes(tokens(await collect(await submitting))[:2]) == b"ab"


async def test_what_can_never_run_is_not_compiled() -> None:
    compiler = _Compiler()
    async with running(FakeExecutor(), compiler=compiler) as engine:
        with pytest.raises(InvalidRequest):
            await engine.submit(PROMPT, replace(greedy(), top_p=2), guide=CHOICE)
        assert compiler.specs == []


async def test_a_refused_guide_runs_nothing() -> None:
    executor, compiler = FakeExecutor(), _Compiler()
    compiler.gate.set()
    async with running(executor, compiler=compiler) as engine:
        with pytest.raises(Unsupported):
            await engine.submit(PROMPT, greedy(), guide=GuideSpec("choice"))
        assert executor.submitted == []
    async with running(FakeExecutor()) as engine:
        with pytest.raises(Unsupported, match="no guided decoding"):
            await engine.submit(PROMPT, greedy(), guide=CHOICE)


async def test_the_deadline_holds_for_the_compilation() -> None:
    async with running(FakeExecutor(), compiler=_Compiler()) as engine:
        with pytest.raises(DeadlineExceeded):
            await engine.submit(PROMPT, greedy(), guide=CHOICE, timeout_s=0.02)


async def test_a_drain_during_the_compilation_refuses() -> None:
    compiler = _Compiler()
    async with running(FakeExecutor(), compiler=compiler) as engine:
        submitting = asyncio.ensure_future(engine.submit(PROMPT, greedy(), guide=CHOICE))
        await asyncio.sleep(0.01)
        assert await engine.drain(1)
        compiler.gate.set()
        with pytest.raises(Unavailable):
            await submitting


# Draining, stopping, dying.


async def test_drain_finishes_what_runs_and_refuses_the_rest() -> None:
    async with running(FakeExecutor(step_s=0.005)) as engine:
        reading = asyncio.create_task(collect(await engine.submit(PROMPT, greedy(20))))
        draining = asyncio.create_task(engine.drain(5))
        await asyncio.sleep(0)
        assert engine.state is EngineState.DRAINING
        with pytest.raises(Unavailable, match="draining"):
            await engine.submit(PROMPT, greedy())
        assert await draining
        assert len(tokens(await reading)) == 20


async def test_a_drain_that_takes_too_long() -> None:
    engine = Engine(FakeExecutor(step_s=0.005))
    engine.start()
    reading = asyncio.create_task(collect(await engine.submit(PROMPT, greedy(2000))))
    assert not await engine.drain(0.05)
    await engine.stop()
    with pytest.raises(Unavailable, match="shutting down"):
        await reading
    await engine.stop()


async def test_stop_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    async with running(FakeExecutor()) as engine:
        await collect(await engine.submit(PROMPT, greedy()))
    left = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("briton")]
    assert left == []


async def test_death_ends_every_request() -> None:
    executor = FakeExecutor(step_s=0.005)
    states: list[EngineState] = []
    async with running(executor) as engine:
        engine.on_state.append(states.append)
        reading = [asyncio.create_task(collect(await engine.submit((i,), greedy(1000)))) for i in range(5)]
        await asyncio.sleep(0.02)
        executor.fail("out of memory")
        ends = await asyncio.gather(*reading, return_exceptions=True)
        assert all(isinstance(end, EngineDead) and "out of memory" in str(end) for end in ends)
        assert states == [EngineState.DEAD]
        assert str(await engine.wait_dead()) == "out of memory"
        with pytest.raises(EngineDead):
            await engine.submit(PROMPT, greedy())
        assert await engine.drain(1)
        assert engine.state is EngineState.DEAD


async def test_giving_up_ends_every_request_with_the_reason() -> None:
    """Whatever the executor does: it may wait for ever for a rank that is gone."""
    executor = FakeExecutor(step_s=0.005)
    engine = Engine(executor)
    engine.start()
    states: list[EngineState] = []
    engine.on_state.append(states.append)
    reading = [asyncio.create_task(collect(await engine.submit((i,), greedy(1000)))) for i in range(3)]
    await asyncio.sleep(0.02)
    executor.hang()
    engine.give_up("rank 1 is gone")
    engine.give_up("and so is rank 2")
    ends = await asyncio.gather(*reading, return_exceptions=True)
    assert [(type(end), str(end)) for end in ends] == [(EngineDead, "rank 1 is gone")] * 3
    assert states == [EngineState.DEAD]
    assert str(await engine.wait_dead()) == "rank 1 is gone"
    with pytest.raises(EngineDead, match="rank 1 is gone"):
        await engine.submit(PROMPT, greedy())
    await engine.stop()  # does not wait for the executor
    executor.shutdown()
    await asyncio.to_thread(engine._pump_thread.join)


class _BuggyExecutor(FakeExecutor):
    def await_chunks(self, timeout: float) -> list[TokenChunk]:
        if self.open_requests():
            raise KeyError("block 7")
        return super().await_chunks(min(timeout, 0.01))


async def test_any_exception_of_the_pump_is_a_death() -> None:
    async with running(_BuggyExecutor()) as engine:
        with pytest.raises(EngineDead, match="block 7"):
            await collect(await engine.submit(PROMPT, greedy()))


# The executor hangs.

SOON = StallLimits(least_s=0.1, factor=20, give_up_s=0.3)


async def test_a_stalled_executor_is_not_healthy_and_may_recover() -> None:
    """Standing complaint about other servers: health stays green on a hung engine."""
    executor = FakeExecutor(step_s=0.001)
    async with running(executor, stall=replace(SOON, give_up_s=60)) as engine:
        executor.hang()
        reading = asyncio.create_task(collect(await engine.submit(PROMPT, greedy())))
        await until(lambda: engine.state is EngineState.STALLED)
        executor.hang(False)
        assert len(tokens(await reading)) == 8
        await until(lambda: engine.state is EngineState.SERVING)


@pytest.mark.parametrize("timeout_s", [0.03, 0.15])
async def test_a_hung_executor_is_seen_whatever_its_callers_do(timeout_s: float) -> None:
    """Callers whose deadlines were shorter than the stall time made a hung engine look idle, and serving, for ever."""
    executor = FakeExecutor(step_s=0.001)
    engine = Engine(executor, stall=SOON)
    states: list[EngineState] = []
    engine.on_state.append(states.append)
    engine.start()
    executor.hang()
    ends: Counter[str] = Counter()
    while engine.death is None and len(ends) < 200:
        try:
            await collect(await engine.submit(PROMPT, greedy(), timeout_s=timeout_s))
        except (DeadlineExceeded, EngineDead) as error:
            ends[type(error).__name__] += 1
    assert states == [EngineState.STALLED, EngineState.DEAD], "it seemed to recover, or never stalled"
    assert ends["DeadlineExceeded"] >= 1
    await engine.stop()
    executor.shutdown()
    await asyncio.to_thread(engine._pump_thread.join)


class _KeepsRequests(FakeExecutor):
    """Goes on with its steps, and ends no request that is cancelled."""

    def cancel(self, request_id: int, index: int | None = None) -> None:
        pass


async def test_an_unanswered_cancel_is_a_request_that_waits() -> None:
    executor = _KeepsRequests(step_s=0.002)
    async with running(executor, stall=replace(SOON, give_up_s=60)) as engine:
        other = asyncio.create_task(collect(await engine.submit((7,), greedy(2000))))
        with await engine.submit(PROMPT, greedy(2000)) as stream:
            await stream.__anext__()
        assert engine.num_open == 2
        await until(lambda: engine.state is EngineState.STALLED)
        assert not other.done()
        other.cancel()


async def test_a_step_that_should_take_long_may() -> None:
    """A limit in seconds alone takes a long prompt on a large model for a hang."""
    executor = FakeExecutor(step_s=0.35)
    async with running(executor, stall=SOON) as engine:
        states: list[EngineState] = []
        engine.on_state.append(states.append)
        assert len(tokens(await collect(await engine.submit(PROMPT, greedy(3))))) == 3
        assert states == []


async def test_steps_without_chunks_are_progress() -> None:
    """A long prompt is computed in many steps that give no token."""
    executor = FakeExecutor(step_s=0.02)
    async with running(executor, stall=StallLimits(least_s=0.25, factor=1, give_up_s=60)) as engine:
        chunks = await collect(await engine.submit(PROMPT, greedy(20), stream=False))
        assert len(chunks) == 1
        assert engine.state is EngineState.SERVING


class _DeafExecutor(FakeExecutor):
    """Hung so badly that not even its counters can be had."""

    def progress(self) -> StepProgress:
        time.sleep(0.3)
        raise RuntimeError("no answer")


async def test_an_executor_that_hangs_for_good_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("briton.engine.watchdog.UNKNOWN_STEP_S", 0.1)
    executor = _DeafExecutor()
    engine = Engine(executor, stall=SOON)
    engine.start()
    executor.hang()
    with pytest.raises(EngineDead, match="no progress"):
        await collect(await engine.submit(PROMPT, greedy()))
    assert engine.hung
    await engine.stop()  # does not wait for what never returns
    executor.shutdown()
    await asyncio.to_thread(engine._pump_thread.join)


async def test_a_watchdog_that_fails_is_the_engines_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ended without a word, and nobody would have seen the executor hang."""
    executor = FakeExecutor(step_s=0.005)
    async with running(executor, stall=SOON) as engine:
        reading = asyncio.create_task(collect(await engine.submit(PROMPT, greedy(2000))))
        await until(lambda: engine.num_open == 1)

        def fail() -> float:
            raise RuntimeError("a bug")

        monkeypatch.setattr(engine, "longest_cancel_s", fail)
        death = await asyncio.wait_for(engine.wait_dead(), 5)
        assert str(death) == "the watchdog failed: a bug"
        with pytest.raises(EngineDead, match="the watchdog failed"):
            await reading
    assert [record.message for record in caplog.records if record.exc_info] == ["the watchdog failed"]
    executor.shutdown()
    await asyncio.to_thread(engine._pump_thread.join)


async def test_a_listener_that_fails_is_its_own_affair(caplog: pytest.LogCaptureFixture) -> None:
    """Its exception ended the watchdog, and at a death whoever waited for that waited for ever."""
    executor = FakeExecutor(step_s=0.001)
    states: list[EngineState] = []

    def fail(state: EngineState) -> None:
        raise RuntimeError(f"cannot take {state.value}")

    async with running(executor, stall=replace(SOON, give_up_s=60)) as engine:
        engine.on_state += [fail, states.append]
        executor.hang()
        reading = asyncio.create_task(collect(await engine.submit(PROMPT, greedy())))
        await until(lambda: engine.state is EngineState.STALLED)
        executor.hang(False)
        assert len(tokens(await reading)) == 8
        await until(lambda: engine.state is EngineState.SERVING)
        executor.fail("out of memory")
        await asyncio.wait_for(engine.wait_dead(), 5)
    assert states == [EngineState.STALLED, EngineState.SERVING, EngineState.DEAD]
    told = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert told == [f"cannot take {state.value}" for state in states]


async def test_an_idle_executor_is_healthy() -> None:
    async with running(FakeExecutor(), stall=StallLimits(least_s=0.02, factor=1, give_up_s=0.02)) as engine:
        await asyncio.sleep(0.15)
        assert engine.state is EngineState.SERVING


async def test_a_busy_thread_pool_is_no_stall() -> None:
    """The question where the executor stands waited in the pool behind long prompts, and a working engine was given
    up."""
    executor = FakeExecutor(step_s=0.01)
    async with running(executor, stall=SOON) as engine:
        states: list[EngineState] = []
        engine.on_state.append(states.append)
        busy = [asyncio.ensure_future(asyncio.to_thread(time.sleep, 1.0)) for _ in range(64)]
        chunks = await collect(await engine.submit(PROMPT, greedy(60), stream=False))
        assert len(tokens(chunks)) == 60
        assert states == []
        await asyncio.gather(*busy)


async def test_a_limit_beyond_the_context_reserves_no_more_than_the_context() -> None:
    """A million max_tokens were booked as a million: 32 of 40 requests were refused beside free slots."""
    executor = FakeExecutor(replace(FAKE_INFO, max_batch_size=64, max_queue_size=8, kv_cache_tokens=128 * 2048))
    executor.hang()
    async with running(executor) as engine:
        streams = [await engine.submit(PROMPT, greedy(1_000_000)) for _ in range(60)]
        assert engine.num_open == 60
        executor.hang(False)
        for stream in streams:
            stream.close()


def test_time_that_this_process_slept_counts_for_no_cancel() -> None:
    ledger = Ledger()
    ledger.open(LedgerEntry(1, 0.0))
    ledger.submit(1)
    ledger.cancel(1, 10.0)
    ledger.forgive(20.0)
    assert ledger.longest_cancel_s(31.0) == 1.0


class _NeverEnds(FakeExecutor):
    """Its shutdown waits for a step that never returns."""

    def __init__(self) -> None:
        super().__init__(step_s=0.005)
        self.released = threading.Event()

    def shutdown(self) -> None:
        self.released.wait(20)
        super().shutdown()


async def test_the_way_out_is_bounded_and_streams_are_told_first() -> None:
    """`stop` joined the executor's thread before streams ended: a step without end made SIGTERM hang in silence."""
    executor = _NeverEnds()
    engine = Engine(executor)
    engine.start()
    reading = asyncio.create_task(collect(await engine.submit(PROMPT, greedy(2000))))
    await asyncio.sleep(0.02)
    executor.hang()
    stopping = asyncio.create_task(engine.stop(0.3))
    with pytest.raises(Unavailable, match="shutting down"):
        await asyncio.wait_for(reading, 0.2)
    assert not stopping.done()
    await asyncio.wait_for(stopping, 2)
    assert engine.hung
    assert engine.num_open == 0
    executor.released.set()
    await asyncio.to_thread(engine._pump_thread.join)


@pytest.mark.parametrize("seed", range(3))
async def test_every_accepted_request_ends_once_under_random_traffic(seed: int) -> None:
    """Consumers that read, leave early or are slow, requests that are refused, and an executor that dies in the end."""
    random_ = random.Random(seed)
    executor = FakeExecutor(replace(FAKE_INFO, max_batch_size=4, max_queue_size=6), step_s=0.001)
    ends: Counter[str] = Counter()

    async def consume(engine: Engine) -> None:
        await asyncio.sleep(random_.random() * 0.3)
        timeout_s = random_.choice((None, 0.01, 5))
        n = random_.randint(1, 3)
        try:
            with await engine.submit(
                (random_.randrange(200),), greedy(random_.randint(1, 60), n=n), timeout_s=timeout_s
            ) as s:
                finals = 0
                async for chunks in s:
                    finals += sum(chunk.is_final for chunk in chunks)
                    if random_.random() < 0.05:
                        ends["left"] += 1
                        return
                    await asyncio.sleep(random_.choice((0, 0, 0.005)))
                assert finals == 1
                ends["final"] += 1
        except (QueueFull, DeadlineExceeded, EngineDead) as error:
            ends[type(error).__name__] += 1

    async with running(executor) as engine:
        tasks: list[Awaitable[None]] = [asyncio.create_task(consume(engine)) for _ in range(120)]
        await asyncio.sleep(0.25)
        executor.fail()
        await asyncio.wait_for(asyncio.gather(*tasks), 10)
        assert engine.num_open == 0
    assert sum(ends.values()) == 120
    assert {"final", "left", "EngineDead"} <= set(ends)
