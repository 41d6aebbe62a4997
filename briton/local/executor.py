"""The local executor: one thread that makes step after step, and an inbox and an outbox between it and its callers."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import asdict

from briton.engine.admission import CALLERS_ROOM
from briton.engine.types import (
    ExecutorStats,
    FinishReason,
    GenerationRequest,
    ModelInfo,
    RankStats,
    StepProgress,
    TokenChunk,
)
from briton.engine.validation import check_request
from briton.errors import QUEUE_SIZE, EngineDead, InvalidRequest, QueueFull
from briton.local.lookahead.costs import CostCurve
from briton.local.plan import Forward
from briton.local.scheduler import Policies
from briton.local.sequence import RequestState
from briton.local.settings import SchedulerPolicy
from briton.local.step_loop import StepLoop

logger = logging.getLogger(__name__)


class LocalExecutor:
    """An `Executor` over a forward function. All of a step happens in its one thread; callers only touch the inbox
    and the outbox."""

    def __init__(
        self,
        info: ModelInfo,
        forward: Forward,
        *,
        policy: SchedulerPolicy,
        enable_chunked_context: bool = True,
        costs: CostCurve | None = None,
        policies: Policies | None = None,
        close: Callable[[], None] | None = None,
        rank_stats: Callable[[], tuple[RankStats, ...]] = tuple,
    ) -> None:
        """Start it. `costs` and `policies`: see `StepLoop`. `close` is called by its thread at shutdown, after
        the last step; not after a failure. `rank_stats` are those of all ranks, where there are several."""
        self.info = info
        self._chunked = enable_chunked_context
        self._loop = StepLoop(
            info, policy=policy, enable_chunked_context=enable_chunked_context, costs=costs, policies=policies
        )
        self.cost = self._loop.policies.cost
        self._open: dict[int, RequestState] = {}  # accepted and without a final chunk, the inbox included
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # something came into the inbox
        self._news = threading.Condition(self._lock)  # something came into the outbox
        self._inbox: deque[RequestState] = deque()
        self._cancelled: deque[tuple[RequestState, int | None]] = deque()
        self._outbox: list[TokenChunk] = []
        self._closing = False
        self._dead: EngineDead | None = None
        self._rank_stats = rank_stats
        # the thread alone holds the model, so that its end frees it
        self._thread = threading.Thread(
            target=self._run, args=(forward, close), name="briton-local-executor", daemon=True
        )
        self._thread.start()

    def submit(self, request: GenerationRequest) -> None:
        """See `Executor.submit`."""
        request = check_request(request, self.info)
        if not self._chunked and len(request.prompt_token_ids) > self.info.max_num_tokens:
            raise InvalidRequest(
                f"prompt has {len(request.prompt_token_ids)} tokens; without chunked context the limit is "
                f"max_num_tokens = {self.info.max_num_tokens}",
                "prompt",
                "context_length_exceeded",
            )
        # here: a guide that cannot be copied is its caller's error, not the loop's
        accepted = RequestState.create(request)
        with self._lock:
            if self._dead or self._closing:
                raise self._dead or EngineDead("the executor is shut down")
            if (num_waiting := self._num_waiting()) >= CALLERS_ROOM * self.info.max_queue_size:
                raise QueueFull(
                    f"{num_waiting} requests are waiting, which is the limit: try again later", code=QUEUE_SIZE
                )
            self._open[request.request_id] = accepted
            self._inbox.append(accepted)
            self._work.notify()

    def cancel(self, request_id: int, index: int | None = None) -> None:
        """See `Executor.cancel`."""
        with self._lock:
            state = self._open.get(request_id)
            if state is not None:
                self._cancelled.append((state, index))
                self._work.notify()

    def await_chunks(self, timeout: float) -> list[TokenChunk]:
        """See `Executor.await_chunks`."""
        with self._lock:
            self._news.wait_for(lambda: self._outbox or self._dead, timeout)
            if not self._outbox and self._dead:
                raise self._dead
            chunks, self._outbox = self._outbox, []
            return chunks

    def stats(self) -> ExecutorStats:
        """See `Executor.stats`."""
        scheduler, blocks = self._loop.scheduler, self._loop.blocks
        free = blocks.num_free_blocks
        return ExecutorStats(
            num_running=len(scheduler.running),
            num_waiting=scheduler.num_waiting_sequences + len(self._inbox),
            kv_blocks_total=blocks.num_blocks,
            kv_blocks_used=blocks.num_blocks - free,
            kv_blocks_cached=blocks.num_cached_free_blocks,
            num_cached_tokens=scheduler.num_cached_tokens,
            num_preemptions=scheduler.num_preemptions,
            ranks=self._rank_stats(),
            **asdict(self._loop.counters),
        )

    def progress(self) -> StepProgress:
        """See `Executor.progress`."""
        loop = self._loop
        return StepProgress(loop.counters.num_steps, loop.expected_s, len(loop.scheduler.running))

    def shutdown(self) -> None:
        """See `Executor.shutdown`."""
        with self._lock:
            self._closing = True
            self._work.notify()
        self._thread.join()

    def _num_waiting(self) -> int:
        """Requests that have no slot. What else they wait for is admission's matter, which is asked before
        (`briton.engine.admission`): this is a bound for who asks it not."""
        scheduler = self._loop.scheduler
        num_unstarted = len(self._inbox) + scheduler.num_waiting_requests
        return num_unstarted - max(0, min(self.info.max_batch_size, self.info.max_num_tokens) - len(scheduler.running))

    def _run(self, forward: Forward, close: Callable[[], None] | None) -> None:
        error: EngineDead | None = None
        try:
            while self._take_in():
                self._step(forward)
            if close is not None:
                close()
        except Exception as cause:
            logger.exception("the executor's step failed; every open request ends")
            error = EngineDead(f"the executor failed: {cause}")
        reason = FinishReason.CANCELLED if error is None else FinishReason.ERROR
        with self._lock:
            self._outbox += self._loop.end_all(self._open.values(), reason, error)
            self._open.clear()
            self._inbox.clear()
            self._dead = error or EngineDead("the executor is shut down")
            self._news.notify_all()

    def _take_in(self) -> bool:
        """Move the inbox into the loop, and carry out cancellations; sleep while there is nothing to do. False: shut
        down."""
        with self._lock:
            while not (self._inbox or self._cancelled or self._closing or self._loop.has_work):
                self._work.wait()
            if self._closing:
                return False
            while self._inbox:
                self._loop.add(self._inbox.popleft())
            cancelled = list(self._cancelled)
            self._cancelled.clear()
        for state, index in cancelled:
            if state.has_ended:
                continue
            if index is None:
                self._emit([self._loop.end(state, FinishReason.CANCELLED)])
            else:
                self._emit(self._loop.end_sequence(state, index))
        return True

    def _step(self, forward: Forward) -> None:
        chunks: list[TokenChunk] = []
        try:
            self._loop.step(forward, chunks)
        finally:  # who ended before something broke gets no other chunk than this
            self._emit(chunks)

    def _emit(self, chunks: list[TokenChunk]) -> None:
        if not chunks:
            return
        with self._lock:
            for chunk in chunks:
                if chunk.is_final:
                    del self._open[chunk.request_id]
            self._outbox += chunks
            self._news.notify()
