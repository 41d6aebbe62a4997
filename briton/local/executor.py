"""The local executor: one thread that turns the scheduler's plans into chunks, step after step."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from briton.engine.types import ExecutorStats, FinishReason, GenerationRequest, ModelInfo, RankStats, TokenChunk
from briton.engine.validation import check_request
from briton.errors import BritonError, EngineDead, InvalidRequest, QueueFull
from briton.local.block_manager import BlockManager
from briton.local.lookahead.costs import CostCurve
from briton.local.lookahead.speculator import Speculator
from briton.local.output import OutputProcessor
from briton.local.plan import Forward, ScheduledSequence, StepPlan, step_inputs
from briton.local.sampler import Sampler, StepLogits
from briton.local.scheduler import Scheduler
from briton.local.sequence import RequestState
from briton.local.settings import SchedulerPolicy
from briton.local.verification import Verified, verify

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Counters:
    """The counters of ExecutorStats that the loop itself keeps."""

    num_requests: int = 0
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_sequence_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    step_s: float = 0.0
    host_s: float = 0.0


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
        close: Callable[[], None] | None = None,
        rank_stats: Callable[[], tuple[RankStats, ...]] = tuple,
    ) -> None:
        """Start it. `costs` are asked for by an engine that speculates (`info.lookahead`): they say what it may
        cost. `close` is called by its thread at shutdown, after the last step; not after a failure. `rank_stats` are
        those of all ranks, where there are several."""
        self.info = info
        self._chunked = enable_chunked_context
        self._blocks = BlockManager(info.kv_cache_tokens // info.kv_block_size, info.kv_block_size)
        self._scheduler = Scheduler(
            self._blocks,
            max_batch_size=info.max_batch_size,
            max_num_tokens=info.max_num_tokens,
            policy=policy,
            enable_chunked_context=enable_chunked_context,
        )
        self._speculator = None if costs is None or info.lookahead is None else Speculator(info, costs)
        self._sampler = Sampler(info.vocab_size, info.stop_token_ids)
        self._output = OutputProcessor(info.stop_token_ids)
        self._open: dict[int, RequestState] = {}  # accepted and not ended, the inbox included
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)  # something came into the inbox
        self._news = threading.Condition(self._lock)  # something came into the outbox
        self._inbox: deque[RequestState] = deque()
        self._cancelled: deque[RequestState] = deque()
        self._outbox: list[TokenChunk] = []
        self._closing = False
        self._dead: EngineDead | None = None
        self._counters = _Counters()
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
            if len(self._inbox) + self._scheduler.num_waiting_requests >= self.info.max_queue_size:
                raise QueueFull(f"{self.info.max_queue_size} requests are waiting, which is the limit: try again later")
            self._open[request.request_id] = accepted
            self._inbox.append(accepted)
            self._work.notify()

    def cancel(self, request_id: int) -> None:
        """See `Executor.cancel`."""
        with self._lock:
            state = self._open.get(request_id)
            if state is not None:
                self._cancelled.append(state)
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
        free = self._blocks.num_free_blocks
        return ExecutorStats(
            num_running=len(self._scheduler.running),
            num_waiting=self._scheduler.num_waiting_requests + len(self._inbox),
            kv_blocks_total=self._blocks.num_blocks,
            kv_blocks_used=self._blocks.num_blocks - free,
            kv_blocks_cached=self._blocks.num_cached_free_blocks,
            num_cached_tokens=self._scheduler.num_cached_tokens,
            num_preemptions=self._scheduler.num_preemptions,
            ranks=self._rank_stats(),
            **asdict(self._counters),
        )

    def shutdown(self) -> None:
        """See `Executor.shutdown`."""
        with self._lock:
            self._closing = True
            self._work.notify()
        self._thread.join()

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
            self._outbox += [self._output.ended(state, reason, error) for state in self._open.values()]
            self._open.clear()
            self._inbox.clear()
            self._dead = error or EngineDead("the executor is shut down")
            self._news.notify_all()

    def _take_in(self) -> bool:
        """Move the inbox into the scheduler, and carry out cancellations; sleep while there is nothing to do. False:
        shut down."""
        with self._lock:
            while not (self._inbox or self._cancelled or self._closing or self._scheduler.has_work):
                self._work.wait()
            if self._closing:
                return False
            while self._inbox:
                self._scheduler.add(self._inbox.popleft())
                self._counters.num_requests += 1
            cancelled = list(self._cancelled)
            self._cancelled.clear()
        for state in cancelled:
            if self._is_open(state):
                self._emit([self._end(state, FinishReason.CANCELLED)])
        return True

    def _step(self, forward: Forward) -> None:
        started = time.perf_counter()
        plan = self._scheduler.schedule()
        if not plan:
            return
        if self._speculator is not None:
            drafts = self._speculator.drafts(plan)
            plan = plan if drafts is None else self._scheduler.attach_drafts(plan, drafts)
        inputs = step_inputs(plan)
        self._counters.num_prompt_tokens += sum(_num_prompt_tokens(entry) for entry in plan)
        dispatched = time.perf_counter()
        logits = forward(inputs)
        computed = time.perf_counter()
        chunks: list[TokenChunk] = []
        try:
            self._book(plan, logits, chunks)
        finally:  # who ended before something broke is no longer open: these chunks are all it gets
            self._emit(chunks)
        ended = time.perf_counter()
        self._counters.num_steps += 1
        self._counters.step_s += ended - started
        self._counters.host_s += ended - started - (computed - dispatched)

    def _book(self, plan: StepPlan, logits: NDArray[np.float32], chunks: list[TokenChunk]) -> None:
        """Update every sequence of the plan, and sample for those that caught up with their tokens; their chunks are
        added to `chunks`."""
        rows = StepLogits(logits)
        row = 0
        due = [entry.samples for entry in plan]  # now: a sequence that a sibling's error ends has no computed tokens
        for entry, samples in zip(plan, due, strict=True):
            sequence, state = entry.sequence, entry.sequence.request_state
            first_row, row = row, row + (entry.num_rows if samples else 0)
            if not self._is_open(state):
                continue  # a sibling's error has just ended the request
            if not samples:
                self._scheduler.update(sequence, entry.num_new_tokens)
                continue
            verified = verify(entry, rows, first_row, self._sampler, self._output)
            self._scheduler.update(sequence, entry.num_new_tokens + verified.num_in_place)
            if self._speculator is not None:
                self._speculator.update(entry, verified, rows, first_row)
            self._count(entry, verified)
            if verified.sampled and state.first_token_at is None:
                state.first_token_at = time.monotonic()
                self._scheduler.start_siblings(state)
            if sequence.finish_reason is not None:
                self._scheduler.finish(sequence)
                if state.is_finished:
                    del self._open[state.request.request_id]
            if verified.sampled and (chunk := self._output.chunk(sequence, verified.sampled)) is not None:
                chunks.append(chunk)
            if verified.error is not None:
                chunks.append(self._end(state, FinishReason.ERROR, verified.error))

    def _count(self, entry: ScheduledSequence, verified: Verified) -> None:
        state, counters = entry.sequence.request_state, self._counters
        num_drafted = 0 if entry.draft is None else entry.draft.num_candidates
        state.num_steps += 1
        state.num_draft_tokens += num_drafted
        state.num_accepted_tokens += len(verified.accepted)
        counters.num_output_tokens += len(verified.sampled)
        counters.num_sequence_steps += 1
        counters.num_draft_tokens += num_drafted
        counters.num_accepted_tokens += len(verified.accepted)

    def _end(self, state: RequestState, reason: FinishReason, error: Exception | None = None) -> TokenChunk:
        """End a whole request before its time."""
        if error is not None and not isinstance(error, BritonError):
            logger.error("request %d failed", state.request.request_id, exc_info=error)
        for sequence in state.sequences:
            self._scheduler.finish(sequence)
        del self._open[state.request.request_id]
        return self._output.ended(state, reason, error)

    def _is_open(self, state: RequestState) -> bool:
        return self._open.get(state.request.request_id) is state

    def _emit(self, chunks: list[TokenChunk]) -> None:
        if chunks:
            with self._lock:
                self._outbox += chunks
                self._news.notify()


def _num_prompt_tokens(entry: ScheduledSequence) -> int:
    """How many of a scheduled sequence's new tokens belong to its prompt."""
    left = entry.sequence.num_prompt_tokens - entry.sequence.num_computed_tokens
    return max(0, min(entry.num_new_tokens, left))
