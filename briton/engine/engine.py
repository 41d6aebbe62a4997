"""Engine: the one stream of chunks that an executor gives, dealt out as one async stream for each request.

Knows asyncio, ids, guides, deadlines and the executor's health. No text, no sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from briton.config.lookahead import LookaheadConfig
from briton.engine.admission import Capacity, Demand, admit
from briton.engine.executor import Executor
from briton.engine.ledger import Ledger, LedgerEntry
from briton.engine.output_lengths import OutputLengths
from briton.engine.request_stream import RequestStream
from briton.engine.types import (
    ExecutorStats,
    FinishReason,
    GenerationRequest,
    ModelInfo,
    SamplingParams,
    StepProgress,
    TokenChunk,
)
from briton.engine.validation import check_request
from briton.engine.watchdog import StallLimits, watch
from briton.errors import DeadlineExceeded, EngineDead, Unavailable, Unsupported
from briton.guidance.guide import Guide, GuideSpec

logger = logging.getLogger(__name__)

POLL_S = 0.5  # how long the pump thread waits for chunks before it looks whether to stop
SHUTDOWN_S = 5.0  # what an executor gets to end its threads; streams have ended before


class EngineState(enum.Enum):
    """What the engine can do for a new request. Only SERVING is healthy."""

    SERVING = "serving"
    STALLED = "stalled"  # a step or a cancel takes far longer than it should; may recover
    DRAINING = "draining"  # refuses new requests, finishes the open ones
    DEAD = "dead"  # for good


class Admission:
    """A place in the ledger, from before any work is done for a request until it is submitted, or `close`."""

    def __init__(self, engine: Engine, entry: LedgerEntry) -> None:
        self.entry = entry
        self.is_submitted = False
        self._engine = engine

    def close(self) -> None:
        """Give the place back unless the request was submitted. Idempotent."""
        if not self.is_submitted:
            self._engine.withdraw(self)

    def __enter__(self) -> Admission:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Compiler(Protocol):
    """Turns what a caller asks for into a guide, off the event loop (`briton.guidance.compiler.GuideCompiler`)."""

    async def compile(self, spec: GuideSpec, *, caller: str) -> Guide:
        """A guide in its start state; callers have equal shares of the time it takes. Raises InvalidRequest,
        Unsupported or QueueFull."""
        ...


class Engine:
    """Runs requests of one event loop on one executor.

    Every accepted request ends for its caller: with its final chunk, or with an error (EngineDead, DeadlineExceeded,
    Unavailable, or what the executor says of it). For the engine it is open until the executor has confirmed its end.
    All methods belong to the loop that called `start`.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        compiler: Compiler | None = None,
        request_timeout_s: float | None = None,
        stall: StallLimits | None = None,
    ) -> None:
        self.info: ModelInfo = executor.info
        self.state = EngineState.SERVING
        self.on_state: list[Callable[[EngineState], None]] = []  # called in the loop, after a change
        self.death: EngineDead | None = None
        self._executor = executor
        self._compiler = compiler
        self._request_timeout_s = request_timeout_s
        self._stall = stall or StallLimits()
        self._ledger = Ledger()
        self._capacity = Capacity.of(self.info)
        self._lengths = OutputLengths()
        self._num_running = 0  # sequences, by the executor's last word
        self._streams: dict[int, RequestStream] = {}
        self._ids = itertools.count(1)
        self._stopping = False  # the end is wanted
        self._is_shut_down = False  # no chunk will come any more
        self.hung = False  # dead because it made no step: its threads may never return
        self.num_batches = 0  # of chunks, from the executor
        self._died = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def num_open(self) -> int:
        """Requests that were accepted, and whose end the executor has not confirmed."""
        return self._ledger.num_submitted

    def start(self) -> None:
        """Start the pump thread and the watchdog; to be called once, in a running loop."""
        self._loop = asyncio.get_running_loop()
        self._pump_thread = threading.Thread(target=self._pump, name="briton-pump", daemon=True)
        self._pump_thread.start()
        is_over = self._died.is_set
        self._watchdog = self._loop.create_task(watch(self, self._stall, is_over))
        self._watchdog.add_done_callback(self._on_watchdog_end)

    def admit(self, demand: Demand, *, priority: int = 0) -> Admission:
        """Ask for a place, before any work is done for the request; its deadline counts from now.

        Raises QueueFull, with the expected wait, Unavailable, or DeadlineExceeded.
        """
        self._check_accepting()
        limits = [seconds for seconds in (demand.timeout_s, self._request_timeout_s) if seconds is not None]
        timeout_s = min(limits, default=None)
        if timeout_s is not None and timeout_s <= 0:
            raise DeadlineExceeded(f"the request was not started within {timeout_s:.3g} s")
        limit = demand.max_output_tokens
        demand = demand._replace(
            timeout_s=timeout_s, max_output_tokens=None if limit is None else min(limit, self.info.max_seq_len)
        )
        admit(demand, self._ledger, self._capacity, self._executor.cost, self._lengths, self._num_running)
        now = self._loop.time()
        entry = LedgerEntry(
            next(self._ids),
            now,
            num_prompt_tokens=demand.num_prompt_tokens,
            num_sequences=demand.num_sequences,
            max_output_tokens=demand.max_output_tokens or self.info.max_seq_len,
            has_limit=demand.max_output_tokens is not None,
            caller=demand.caller,
            priority=priority,
            timeout_s=timeout_s,
        )
        self._ledger.open(entry)
        return Admission(self, entry)

    def withdraw(self, admission: Admission) -> None:
        """An admitted request is not submitted after all."""
        self._close(admission.entry.request_id)

    async def submit(
        self,
        prompt_token_ids: tuple[int, ...],
        sampling: SamplingParams,
        *,
        admission: Admission | None = None,
        guide: GuideSpec | None = None,
        priority: int = 0,
        cache_salt: str = "",
        stream: bool = True,
        lookahead: LookaheadConfig | None = None,
        prediction_token_ids: tuple[int, ...] = (),
        timeout_s: float | None = None,
        lora: str | None = None,
        caller: str = "",
        has_limit: bool = True,
    ) -> RequestStream:
        """Accept a request; close the stream (it is a context manager) to cancel it.

        Without an `admission` it asks for one itself, of which `timeout_s`, `caller` and `priority` are part; they
        count nothing beside one. Raises InvalidRequest, Unsupported, QueueFull, Unavailable or DeadlineExceeded, and
        then nothing runs.
        """
        self._check_accepting()
        if admission is None:
            limit = sampling.max_tokens if has_limit else None
            demand = Demand(len(prompt_token_ids), sampling.n, limit, timeout_s, caller)
            admission = self.admit(demand, priority=priority)
        with admission:
            return await self._submit(
                admission,
                GenerationRequest(
                    admission.entry.request_id,
                    prompt_token_ids,
                    sampling,
                    priority=admission.entry.priority,
                    cache_salt=cache_salt,
                    stream=stream,
                    lookahead=lookahead,
                    prediction_token_ids=prediction_token_ids,
                    lora=lora,
                    caller=admission.entry.caller,
                    has_limit=has_limit,
                ),
                guide,
            )

    async def _submit(self, admission: Admission, request: GenerationRequest, guide: GuideSpec | None) -> RequestStream:
        entry = admission.entry
        entry.num_prompt_tokens = len(request.prompt_token_ids)
        room = max(1, self.info.max_seq_len - entry.num_prompt_tokens)
        entry.max_output_tokens, entry.num_sequences = min(request.sampling.max_tokens, room), request.sampling.n
        if guide is not None:
            check_request(request, self.info)  # what can never run is not worth a compilation
            request = await self._with_guide(request, guide, entry.deadline)
            self._check_accepting()
        if entry.deadline is not None:
            left = entry.deadline - self._loop.time()
            if left <= 0:
                raise DeadlineExceeded(f"the request was not started within {entry.timeout_s:.3g} s")
            request = replace(request, timeout_s=left)
        return self._accept(admission, request)

    def stats(self) -> ExecutorStats:
        """The executor's counters and gauges."""
        return self._executor.stats()

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests from now on; True when the open ones ended within `timeout_s` seconds."""
        if self.state is not EngineState.DEAD:
            self._set_state(EngineState.DRAINING)
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    async def stop(self, timeout_s: float = SHUTDOWN_S) -> None:
        """End every open request with Unavailable, then shut the executor down. Idempotent.

        An executor that hangs, or does not end within `timeout_s` seconds, is left alone: `hung` says so, and the
        process should not wait for its threads.
        """
        if self.state is not EngineState.DEAD:
            self._set_state(EngineState.DRAINING)
        self._stopping = True
        self._watchdog.cancel()
        self._end_streams(Unavailable("the engine is shutting down"))
        if self.hung:
            return
        ending = threading.Thread(target=self._shut_down, name="briton-shutdown", daemon=True)
        ending.start()
        try:
            await asyncio.wait_for(self._died.wait(), timeout_s)
        except asyncio.TimeoutError:
            logger.error("the executor did not shut down within %g s: its threads are left behind", timeout_s)
            self.give_up("the executor did not shut down")
            return
        if not self.hung:
            for thread in (self._pump_thread, ending):
                await asyncio.to_thread(thread.join, timeout_s)

    async def wait_dead(self) -> EngineDead:
        """Return when the executor has failed or was stopped."""
        await self._died.wait()
        assert self.death is not None
        return self.death

    def _check_accepting(self) -> None:
        if self.death is not None:
            raise EngineDead(self.death.message)
        if self.state is EngineState.DRAINING:
            raise Unavailable("the engine is draining: it accepts no new requests")

    async def _with_guide(
        self, request: GenerationRequest, spec: GuideSpec, deadline: float | None
    ) -> GenerationRequest:
        if self._compiler is None:
            raise Unsupported("this engine has no guided decoding", "guide")
        remaining = None if deadline is None else deadline - self._loop.time()
        try:
            guide = await asyncio.wait_for(self._compiler.compile(spec, caller=request.caller), remaining)
        except asyncio.TimeoutError:
            raise DeadlineExceeded("the request's guide was not compiled before its deadline") from None
        return replace(request, guide=guide)

    def _accept(self, admission: Admission, request: GenerationRequest) -> RequestStream:
        entry = admission.entry
        stream = RequestStream(request.request_id, self._cancel, self._finish)
        self._streams[request.request_id] = stream  # before submit: a chunk may come first
        self._ledger.submit(request.request_id)
        self._idle.clear()
        try:
            self._executor.submit(request)
        except BaseException:
            self._streams.pop(request.request_id, None)
            raise
        admission.is_submitted = True
        if entry.deadline is not None:
            error = DeadlineExceeded(f"the request did not finish within {entry.timeout_s:.3g} s")
            stream.timer = self._loop.call_at(entry.deadline, self._cancel, stream, error)
        return stream

    def _cancel(self, stream: RequestStream, error: Exception | None = None) -> None:
        """End a stream from this side, and ask the executor to end its request."""
        self._streams.pop(stream.request_id, None)
        stream.end(error)
        self._finish(stream, None)

    def _finish(self, stream: RequestStream, index: int | None) -> None:
        """Cancel a request whose final chunk is still wanted, or one sequence of it."""
        if index is None:
            self._ledger.cancel(stream.request_id, self._loop.time())
        self._executor.cancel(stream.request_id, index)

    def _close(self, request_id: int) -> None:
        """A request's end is confirmed."""
        self._ledger.close(request_id)
        if not self._ledger.num_submitted:
            self._idle.set()

    def _end_streams(self, error: Exception) -> None:
        for stream in list(self._streams.values()):
            self._cancel(stream, error)

    def _shut_down(self) -> None:
        """In a thread of its own, which may never return."""
        try:
            self._executor.shutdown()
        except Exception:
            logger.exception("the executor failed to shut down")
        self._is_shut_down = True

    # From the executor to the streams.

    def _pump(self) -> None:
        """The pump thread: hands every batch of chunks over to the loop in one call."""
        death = EngineDead("the engine was shut down")
        try:
            while True:
                chunks = self._executor.await_chunks(POLL_S)
                if chunks:
                    self._loop.call_soon_threadsafe(self._deliver, chunks)
                elif self._is_shut_down:
                    break
        except EngineDead as error:
            death = error
        except Exception as error:
            logger.exception("the executor failed")
            death = EngineDead(f"the executor failed: {error}")
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            self._loop.call_soon_threadsafe(self._die, death)

    def _deliver(self, chunks: Sequence[TokenChunk]) -> None:
        self.num_batches += 1
        streams, now = self._streams, self._loop.time()
        for chunk in chunks:
            self._ledger.add_tokens(chunk.request_id, len(chunk.token_ids), now)
            if chunk.is_final:
                self._learn_length(chunk)
                self._close(chunk.request_id)
            stream = streams.get(chunk.request_id)
            if stream is None:  # cancelled: its last chunks interest nobody
                continue
            reason = chunk.finish_reason
            if reason is FinishReason.ERROR:
                error = chunk.error or RuntimeError("the executor gave no reason")
                self._end_early(stream, error, chunk.is_final)
            elif reason is FinishReason.CANCELLED and not (
                stream.finishing or chunk.index in stream.finished_sequences
            ):
                self._end_early(stream, Unavailable("the engine is shutting down"), chunk.is_final)
            else:
                stream.push(chunk)
                if chunk.is_final:
                    del streams[chunk.request_id]
                    stream.end()

    def _learn_length(self, final: TokenChunk) -> None:
        entry = self._ledger.get(final.request_id)
        if entry is not None and not entry.has_limit and entry.num_output_tokens:
            self._lengths.observe(entry.num_output_tokens // entry.num_sequences)

    def _end_early(self, stream: RequestStream, error: Exception, is_final: bool) -> None:
        """One sequence failed: the whole request ends, also its sequences that could go on."""
        if is_final:
            del self._streams[stream.request_id]
            stream.end(error)
        else:
            self._cancel(stream, error)

    def _die(self, death: EngineDead) -> None:
        if self.death is not None:
            return
        self.death = death
        if not self._stopping:
            logger.error("the executor is dead, %d open requests end: %s", self.num_open, death)
        for stream in self._streams.values():
            stream.end(EngineDead(death.message))
        self._streams.clear()
        self._ledger.clear()
        self._idle.set()
        self._set_state(EngineState.DEAD)
        self._died.set()

    # For the watchdog: a hung executor must not look healthy, nor live for ever.

    def progress(self) -> StepProgress:
        """Where the executor stands. In a thread of the watchdog's."""
        progress = self._executor.progress()
        self._num_running = progress.num_running
        return progress

    def forgive(self, seconds: float) -> None:
        """This process slept for so long itself."""
        self._ledger.forgive(seconds)

    def longest_cancel_s(self) -> float:
        """How long the executor has left a cancel unanswered, in seconds."""
        return self._ledger.longest_cancel_s(self._loop.time())

    def on_stall(self, stalled_s: float) -> None:
        """Not healthy until there is progress."""
        if self.state is EngineState.SERVING:
            logger.error("no progress for %.1f s with %d open requests: not healthy", stalled_s, self.num_open)
            self._set_state(EngineState.STALLED)

    def on_progress(self) -> None:
        """Healthy again."""
        if self.state is EngineState.STALLED:
            logger.warning("the executor goes on")
            self._set_state(EngineState.SERVING)

    def on_death(self, stalled_s: float) -> None:
        """Given up."""
        self.give_up(f"the executor has made no progress for {stalled_s:.1f} s")

    def _on_watchdog_end(self, watchdog: asyncio.Task[None]) -> None:
        """An executor that nobody watches could hang for ever, and look healthy."""
        if not watchdog.cancelled() and (error := watchdog.exception()) is not None:
            logger.error("the watchdog failed", exc_info=error)
            self.give_up(f"the watchdog failed: {error}")

    def give_up(self, reason: str) -> None:
        """End every open request with EngineDead: the executor's threads may never return."""
        self.hung = True
        self._die(EngineDead(reason))

    def _set_state(self, state: EngineState) -> None:
        if state is not self.state:
            self.state = state
            for listener in self.on_state:
                try:
                    listener(state)
                except Exception:  # a bug of the listener's: what the engine does must not depend on it
                    logger.exception("a listener to the engine's state failed")
