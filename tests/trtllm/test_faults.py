"""What goes wrong in the library, and what its callers are told."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from briton.engine.engine import Engine, EngineState
from briton.engine.types import FinishReason, SamplingParams
from briton.engine.watchdog import StallLimits
from briton.errors import QUEUE_SIZE, BritonError, DeadlineExceeded, EngineDead, InvalidRequest, QueueFull, Unsupported
from briton.trtllm import executor as executor_module
from briton.trtllm.executor import TrtllmExecutor
from tests.request_runner import RequestRunner
from tests.scripted_guide import ScriptedGuide
from tests.trtllm.engines import STOP_IDS, start
from tests.trtllm.numpy_mask_device import NumpyMaskDevice
from tests.trtllm.stand_in.executor import Faults
from tests.trtllm.stand_in.library import stand_in_library

PROMPT = (1, 2, 3, 4, 5)


class Broken:
    """An executor whose library has `faults`, with what runs requests on it."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.faults = Faults()
        self.devices: list[NumpyMaskDevice] = []
        library = replace(stand_in_library(faults=self.faults), mask_device=self._mask_device)
        self.executor: TrtllmExecutor = start(directory, library, **settings)
        self.runner = RequestRunner(self.executor)

    def _mask_device(self, sizes: Any) -> NumpyMaskDevice:
        self.devices.append(NumpyMaskDevice(sizes))
        return self.devices[-1]


@pytest.fixture
def broken(tmp_path: Path) -> Any:
    broken = Broken(tmp_path)
    yield broken
    broken.faults.hangs.clear()
    broken.executor.shutdown()


def _ends_as_usual(broken: Broken) -> bool:
    """Whether a request still gets its tokens."""
    return len(broken.runner.run(PROMPT, max_tokens=5).tokens()) == 5


# Responses.


def test_an_error_in_mid_stream_ends_every_request_of_the_step(broken: Broken) -> None:
    broken.faults.step_s = 0.005
    results = [broken.runner.submit((*PROMPT, i), max_tokens=50, n=1 + i) for i in range(2)]
    while not all(result.chunks for result in results):
        broken.runner.collect(0.1)
    broken.faults.error_after = 10
    broken.runner.finish()
    for result in results:
        assert result.final.finish_reason is FinishReason.ERROR
        assert "illegal memory access" in str(result.final.error)
        assert not isinstance(result.final.error, BritonError)  # nobody's fault but ours: INTERNAL
        assert 0 < len(result.tokens()) <= 10
    assert _ends_as_usual(broken)


def test_a_request_that_the_library_will_not_start_is_its_callers_error(broken: Broken) -> None:
    """Our own checks should have refused it: then the library's say."""
    executor = broken.executor
    executor.info = replace(executor.info, max_seq_len=10_000)
    result = broken.runner.run((1,) * 400)
    assert isinstance(result.final.error, InvalidRequest)
    assert "TensorRT-LLM refuses the request" in result.final.error.message
    assert "exceeds maximum input length" in result.final.error.message
    assert _ends_as_usual(broken)


def test_a_response_for_an_unknown_id_is_nobodys(broken: Broken) -> None:
    api = broken.executor._library.trtllm
    for client_id in (None, 424242):
        broken.executor._engine.enqueue_request(api.Request([1, 2], 3, streaming=True, client_id=client_id))
    assert _ends_as_usual(broken)
    assert broken.runner.collect(0.05) == 0


def test_a_response_that_cannot_be_read_ends_its_request_and_frees_it(broken: Broken) -> None:
    def raising(tensor: object) -> Any:
        raise ValueError("an element type that nobody knows")

    broken.executor._library = replace(broken.executor._library, array=raising)
    result = broken.runner.run(PROMPT, logprobs=1, max_tokens=200)
    assert result.final.finish_reason is FinishReason.ERROR
    assert "nobody knows" in str(result.final.error)
    assert _ends_as_usual(broken)
    _assert_idle(broken)


def test_the_library_times_a_request_out(broken: Broken) -> None:
    broken.faults.step_s = 0.01
    request = replace(broken.runner.request(PROMPT, max_tokens=200), timeout_s=0.05)
    result = broken.runner.submit_request(request)
    broken.runner.finish()
    assert isinstance(result.final.error, DeadlineExceeded)
    assert result.final.error.message == "the request did not finish within 0.05 s"


def test_responses_before_enqueue_returns(broken: Broken) -> None:
    broken.faults.enqueue_delay_s = 0.1
    submitting = threading.Thread(target=lambda: broken.runner.submit(PROMPT, max_tokens=3))
    submitting.start()
    while not any(result.chunks and result.chunks[-1].is_final for result in broken.runner.results.values()):
        broken.runner.collect(0.01)
        assert submitting.is_alive() or broken.runner.results
    assert submitting.is_alive()
    submitting.join()
    assert broken.runner.collect(0.05) == 0


def test_cancelling_before_enqueue_returns(broken: Broken) -> None:
    broken.faults.step_s = 0.01
    broken.faults.enqueue_delay_s = 0.1
    submitting = threading.Thread(target=lambda: broken.runner.submit(PROMPT, max_tokens=200))
    submitting.start()
    while not broken.executor._open:
        time.sleep(0.001)
    broken.executor.cancel(1)
    submitting.join()
    broken.runner.finish()
    assert broken.runner.results[1].final.finish_reason is FinishReason.CANCELLED
    _assert_idle(broken)


# Calls that raise.


def test_a_request_that_the_library_cannot_make_is_refused(broken: Broken) -> None:
    not_a_number: Any = float("nan")  # no int, which nobody checks
    request = broken.runner.request(PROMPT, priority=not_a_number)
    with pytest.raises(Unsupported, match=r"TensorRT-LLM refuses the request: .*Assertion failed"):
        broken.runner.submit_request(request)
    assert _ends_as_usual(broken)


def test_the_librarys_full_queue_is_queue_full(tmp_path: Path) -> None:
    broken = Broken(tmp_path, max_batch_size=1, max_queue_size=1)
    broken.faults.step_s = 0.01
    refusals: list[QueueFull] = []
    for _ in range(5):
        try:
            broken.runner.submit(PROMPT, max_tokens=50)
        except QueueFull as error:
            refusals.append(error)
    assert "1 requests are waiting, which is the limit" in refusals[0].message
    assert refusals[0].code == QUEUE_SIZE
    accepted = len(broken.runner.results)
    assert accepted + len(refusals) == 5
    assert broken.executor.stats().num_requests == accepted
    broken.runner.finish()
    broken.executor.shutdown()


def test_enqueue_request_raises(broken: Broken) -> None:
    broken.faults.raises["enqueue_request"] = RuntimeError("[TensorRT-LLM][ERROR] out of luck\n1 0x7f a stack trace")
    with pytest.raises(RuntimeError, match=r"^TensorRT-LLM: \[TensorRT-LLM\]\[ERROR\] out of luck$"):
        broken.runner.submit(PROMPT)
    broken.faults.raises["enqueue_request"] = RuntimeError("Shutdown called, cannot enqueue requests")
    with pytest.raises(EngineDead):
        broken.runner.submit(PROMPT)
    broken.faults.raises.clear()
    assert broken.executor.stats().num_requests == 0
    assert broken.runner.collect(0.02) == 0
    assert _ends_as_usual(broken)


def test_await_responses_raises(broken: Broken, caplog: pytest.LogCaptureFixture) -> None:
    results = [broken.runner.submit(PROMPT, max_tokens=200) for _ in range(3)]
    broken.faults.raises["await_responses"] = RuntimeError("MPI_ABORT was invoked\nstack")
    broken.runner.finish()
    for result in results:
        assert isinstance(result.final.error, EngineDead)
        assert result.final.error.message == "TensorRT-LLM failed: MPI_ABORT was invoked"
    for call in (lambda: broken.executor.await_chunks(0.1), lambda: broken.runner.submit(PROMPT)):
        with pytest.raises(EngineDead, match="MPI_ABORT"):
            call()
    broken.executor.cancel(1)
    assert "every open request ends" in caplog.text


def test_cancel_request_raises(broken: Broken, caplog: pytest.LogCaptureFixture) -> None:
    broken.faults.step_s = 0.005
    result = broken.runner.submit(PROMPT, max_tokens=20)
    while not result.chunks:
        broken.runner.collect(0.1)
    broken.faults.raises["cancel_request"] = RuntimeError("no")
    broken.executor.cancel(result.request.request_id)
    broken.runner.finish()
    assert result.final.finish_reason is FinishReason.LENGTH
    assert "could not cancel request" in caplog.text
    broken.faults.raises.clear()


def test_statistics_that_raise_are_the_last_ones(broken: Broken) -> None:
    assert _ends_as_usual(broken)
    before = broken.executor.stats()
    broken.faults.raises["get_latest_iteration_stats"] = RuntimeError("no")
    assert broken.executor.stats() == before
    assert before.num_steps > 0
    broken.faults.raises.clear()


def test_shutdown_raises(broken: Broken, caplog: pytest.LogCaptureFixture) -> None:
    broken.faults.raises["shutdown"] = RuntimeError("no")
    result = broken.runner.submit(PROMPT, max_tokens=200)
    broken.executor.shutdown()
    broken.runner.finish()
    assert result.final.finish_reason is FinishReason.CANCELLED
    assert "failed to shut down" in caplog.text


# Guides.


def test_a_device_that_raises_ends_guided_requests_and_no_others(broken: Broken) -> None:
    broken.faults.step_s = 0.002
    free = broken.runner.submit(PROMPT, max_tokens=40)
    guided = broken.runner.submit(PROMPT, guide=ScriptedGuide([{10}] * 30, STOP_IDS), max_tokens=40)
    while not guided.chunks:
        broken.runner.collect(0.1)
    broken.devices[0].raises = RuntimeError("CUDA error")
    broken.runner.finish()
    assert guided.final.finish_reason is FinishReason.ERROR
    assert "CUDA error" in str(guided.final.error)
    assert set(guided.tokens()) == {10}  # nothing that the guide did not allow was given out
    assert len(free.tokens()) == 40
    _assert_idle(broken)


@pytest.mark.parametrize("stream", [True, False])
def test_a_guide_that_fails_takes_its_siblings_and_nobody_else(broken: Broken, stream: bool) -> None:
    guide = ScriptedGuide([{10, 11}, {12}, set()], STOP_IDS)
    beside = broken.runner.submit(PROMPT, max_tokens=30)
    stuck = broken.runner.submit(PROMPT, guide=guide, n=3, max_tokens=30, stream=stream)
    broken.runner.finish()
    assert stuck.final.finish_reason is FinishReason.ERROR
    assert isinstance(stuck.final.error, BritonError)
    assert set(stuck.tokens(0)) <= {10, 11, 12}
    assert len(beside.tokens()) == 30
    assert broken.runner.collect(0.05) == 0
    _assert_idle(broken)


def test_a_guide_that_cannot_be_copied_is_its_callers_error(broken: Broken) -> None:
    class Uncopied(ScriptedGuide):
        def copy(self) -> Any:
            raise OSError("no copy")

    with pytest.raises(OSError, match="no copy"):
        broken.runner.submit(PROMPT, guide=Uncopied([{10}], STOP_IDS))
    assert _ends_as_usual(broken)


def test_a_guide_is_complete_when_only_the_stop_token_was_cut_off(broken: Broken) -> None:
    guide = ScriptedGuide([{10}, {11}], STOP_IDS)
    assert broken.runner.run(PROMPT, guide=guide, max_tokens=2).reason() is FinishReason.STOP
    assert broken.runner.run(PROMPT, guide=guide, max_tokens=1).reason() is FinishReason.LENGTH


def test_guides_survive_chunks_of_context(tmp_path: Path) -> None:
    broken = Broken(tmp_path, max_num_tokens=65)
    guide = ScriptedGuide([{10, 11}, {20}, {30}], STOP_IDS)
    result = broken.runner.run((3,) * 240, guide=guide)
    assert result.tokens()[1:] == (20, 30, result.final.stop_token_id)
    assert broken.devices[0].num_masked > 4  # once for each chunk
    broken.executor.shutdown()


# Hanging.


@pytest.mark.timing
def test_shutdown_of_a_library_that_hangs_returns(
    broken: Broken, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(executor_module, "SHUTDOWN_S", 0.2)
    result = broken.runner.submit(PROMPT, max_tokens=200)
    broken.faults.hangs.set()
    started = time.monotonic()
    broken.executor.shutdown()
    broken.executor.shutdown()
    assert time.monotonic() - started < 2
    broken.runner.finish()
    assert result.final.finish_reason is FinishReason.CANCELLED
    assert "has not shut down within" in caplog.text


def test_shutdown_while_a_request_is_being_enqueued(broken: Broken) -> None:
    broken.faults.enqueue_delay_s = 0.1
    submitting = threading.Thread(target=lambda: broken.runner.submit(PROMPT, max_tokens=50))
    submitting.start()
    while not broken.executor._open:
        time.sleep(0.001)
    broken.executor.shutdown()
    submitting.join()
    broken.runner.finish()
    assert broken.runner.results[1].final.finish_reason is FinishReason.CANCELLED


def test_shutdown_while_the_pump_waits(broken: Broken) -> None:
    raised: list[Exception] = []

    def pump() -> None:
        try:
            while True:
                broken.executor.await_chunks(5)
        except EngineDead as error:
            raised.append(error)

    thread = threading.Thread(target=pump)
    thread.start()
    time.sleep(0.05)
    broken.executor.shutdown()
    thread.join(2)
    assert not thread.is_alive()
    assert len(raised) == 1


async def test_the_watchdog_notices_a_library_that_makes_no_step(
    broken: Broken, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(executor_module, "SHUTDOWN_S", 0.1)
    caplog.set_level(logging.ERROR)
    states: list[EngineState] = []
    engine = Engine(broken.executor, stall=StallLimits(least_s=0.1, give_up_s=0.3))
    engine.on_state.append(states.append)
    engine.start()
    broken.faults.hangs.set()
    stream = await engine.submit(PROMPT, SamplingParams(temperature=0.0, max_tokens=50))
    with pytest.raises(EngineDead, match="has made no progress"):
        async for _ in stream:
            pass
    assert states == [EngineState.STALLED, EngineState.DEAD]
    await asyncio.to_thread(broken.executor.shutdown)
    broken.faults.hangs.clear()


async def test_deadlines_reach_the_library(broken: Broken) -> None:
    """The Engine ends a request at its deadline; the library is told, so that it frees what the request held."""
    sent: list[Any] = []
    enqueue = broken.executor._engine.enqueue_request
    broken.executor._engine.enqueue_request = lambda request: sent.append(request) or enqueue(request)  # type: ignore[func-returns-value]
    engine = Engine(broken.executor)
    engine.start()
    sampling = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
    async for _ in await engine.submit(PROMPT, sampling, timeout_s=20):
        pass
    async for _ in await engine.submit(PROMPT, sampling):
        pass
    assert 19 < sent[0].allotted_time_ms.total_seconds() <= 20
    assert sent[1].allotted_time_ms is None
    await engine.stop()


def _assert_idle(broken: Broken) -> None:
    """Nothing is open in the library either."""
    deadline = time.monotonic() + 5
    while True:
        stats = broken.executor.stats()
        if (stats.num_running, stats.num_waiting, stats.kv_blocks_used) == (0, 0, 0):
            return
        assert time.monotonic() < deadline, stats
        broken.runner.collect(0.01)
