"""One step after another: schedule, draft, compute, sample, and the books that follow. No thread, no queue, no lock.

`LocalExecutor` runs it in its thread. Who wants to see every step, such as a test, runs it by hand.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

from briton.engine.types import FinishReason, ModelInfo, TokenChunk
from briton.errors import BritonError
from briton.local.block_manager import BlockManager
from briton.local.cpus import available_cpus
from briton.local.lookahead.costs import CostCurve
from briton.local.lookahead.speculator import Speculator
from briton.local.output import OutputProcessor
from briton.local.plan import Forward, ScheduledSequence, StepPlan, step_inputs
from briton.local.sampler import StepLogits
from briton.local.scheduler import Policies, Scheduler, step_shape
from briton.local.sequence import RequestState, SequenceState
from briton.local.settings import SchedulerPolicy
from briton.local.step_sampler import StepSampler
from briton.local.verification import Verified

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StepCounters:
    """What the loop has done since its start: the fields of `ExecutorStats` that are known here."""

    num_requests: int = 0
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_sequence_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    step_s: float = 0.0
    host_s: float = 0.0


class StepLoop:
    """All requests of an executor, from the scheduler's queue to their last chunk. For one thread."""

    def __init__(
        self,
        info: ModelInfo,
        *,
        policy: SchedulerPolicy,
        enable_chunked_context: bool = True,
        costs: CostCurve | None = None,
        policies: Policies | None = None,
    ) -> None:
        """`costs` are asked for by an engine that speculates (`info.lookahead`): they say what it may cost."""
        self.policies = policies or Policies()
        self.expected_s: float | None = None  # what the step it is in, or was in last, should take
        self.blocks = BlockManager(info.kv_cache_tokens // info.kv_block_size, info.kv_block_size)
        self.scheduler = Scheduler(
            self.blocks,
            max_batch_size=info.max_batch_size,
            max_num_tokens=info.max_num_tokens,
            policy=policy,
            enable_chunked_context=enable_chunked_context,
            policies=self.policies,
        )
        self.speculator = None if costs is None or info.lookahead is None else Speculator(info, costs)
        self.output = OutputProcessor(info.stop_token_ids)
        self.counters = StepCounters()
        self._sampler = StepSampler(info.vocab_size, info.stop_token_ids, available_cpus())

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return self.scheduler.has_work

    def add(self, state: RequestState) -> None:
        """Queue an accepted request."""
        self.scheduler.add(state)
        self.counters.num_requests += 1

    def step(self, forward: Forward, chunks: list[TokenChunk]) -> StepPlan:
        """Make one step; what was computed. Chunks are added to `chunks` as they come: whatever is raised, by `forward`
        say, those that are there are to be sent, and who has had no final one is to be told by `end_all`."""
        started = time.perf_counter()
        plan = self.scheduler.schedule()
        if not plan:
            return plan
        if self.speculator is not None:
            plan = self.speculator.with_drafts(plan, self.scheduler.attach_drafts)
        shape = step_shape(plan)
        self.expected_s = self.policies.cost.expected(shape)
        inputs = step_inputs(plan)
        self.counters.num_prompt_tokens += sum(_num_prompt_tokens(entry) for entry in plan)
        self._sampler.prepare(plan)
        dispatched = time.perf_counter()
        logits = forward(inputs)
        computed = time.perf_counter()
        self._book(plan, StepLogits(logits), chunks)
        ended = time.perf_counter()
        self.policies.cost.observe(shape, ended - started)
        self.counters.num_steps += 1
        self.counters.step_s += ended - started
        self.counters.host_s += ended - started - (computed - dispatched)
        return plan

    def end(self, state: RequestState, reason: FinishReason, error: Exception | None = None) -> TokenChunk:
        """End a whole request before its time: its final chunk."""
        if error is not None and not isinstance(error, BritonError):
            logger.error("request %d failed", state.request.request_id, exc_info=error)
        for sequence in state.sequences:
            self._finish(sequence)
        self._leave(state)
        return self.output.ended(state, reason, error)

    def end_sequence(self, state: RequestState, index: int) -> list[TokenChunk]:
        """End one sequence of a request before its time: its last chunk, which is the request's where none is left.

        The first one goes on until it has computed the prompt: its siblings wait for that.
        """
        sequence = state.sequences[index]
        if state.has_ended or sequence.finish_reason is not None:
            return []
        if index == 0 and state.first_token_at is None and len(state.sequences) > 1:
            state.cancel_first = True
            return []
        sequence.finish_reason = FinishReason.CANCELLED
        self._finish(sequence)
        if state.is_finished:
            self._leave(state)
        chunk = self.output.chunk(sequence, [])
        return [] if chunk is None else [chunk]

    def end_all(
        self, states: Iterable[RequestState], reason: FinishReason, error: Exception | None = None
    ) -> list[TokenChunk]:
        """The final chunks of all requests that are left, added or not. No step may follow, and the books, which may be
        what is broken, are not touched."""
        if self.speculator is not None:
            self.speculator.forget_all()
        return [self.output.ended(state, reason, error) for state in states]

    def check_invariants(self) -> None:
        """Raise AssertionError unless blocks and queues are consistent, and nothing is kept of a sequence that has
        ended."""
        self.scheduler.check_invariants()
        alive = {*self.scheduler.running, *self.scheduler.waiting}
        assert alive.issuperset(self.output.held), "tokens of a sequence that has ended are held back"
        if self.speculator is not None:
            assert alive.issuperset(self.speculator.known), "a sequence that has ended has a drafter"

    def _book(self, plan: StepPlan, logits: StepLogits, chunks: list[TokenChunk]) -> None:
        """Update every sequence of the plan, and sample for those that caught up with their tokens."""
        row = 0
        due = [entry.samples for entry in plan]  # now: a sequence that a sibling's error ends has no computed tokens
        all_verified = self._sampler.verify(plan, due, logits, self.output)
        for entry, samples, verified in zip(plan, due, all_verified, strict=True):
            sequence, state = entry.sequence, entry.sequence.request_state
            first_row, row = row, row + (entry.num_rows if samples else 0)
            if state.has_ended:
                continue  # a sibling's error has just ended the request
            if not samples:
                self.scheduler.update(sequence, entry.num_new_tokens)
                continue
            if isinstance(verified, Exception):
                raise verified
            sequence.finish_reason = verified.finish_reason
            self.scheduler.update(sequence, entry.num_new_tokens + verified.num_in_place, len(verified.sampled))
            if self.speculator is not None:
                self.speculator.update(entry, verified, logits, first_row)
            self._count(entry, verified)
            if verified.sampled and state.first_token_at is None:
                state.first_token_at = time.monotonic()
                self.scheduler.start_siblings(state)
            if sequence.finish_reason is not None:
                self._finish(sequence)
                if state.is_finished:
                    self._leave(state)
            if verified.sampled and (chunk := self.output.chunk(sequence, verified.sampled)) is not None:
                chunks.append(chunk)
            if verified.error is not None:
                chunks.append(self.end(state, FinishReason.ERROR, verified.error))
            elif state.cancel_first and sequence.index == 0:
                state.cancel_first = False
                chunks += self.end_sequence(state, 0)

    def _finish(self, sequence: SequenceState) -> None:
        """The one place where a sequence gives back what it had."""
        self.scheduler.finish(sequence)
        if self.speculator is not None:
            self.speculator.forget(sequence)

    def _leave(self, state: RequestState) -> None:
        """A request has ended, with all its sequences."""
        state.has_ended = True
        self.scheduler.leave(state)

    def _count(self, entry: ScheduledSequence, verified: Verified) -> None:
        state, counters = entry.sequence.request_state, self.counters
        num_drafted = 0 if entry.draft is None else entry.draft.num_candidates
        state.num_steps += 1
        state.num_draft_tokens += num_drafted
        state.num_accepted_tokens += len(verified.accepted)
        counters.num_output_tokens += len(verified.sampled)
        counters.num_sequence_steps += 1
        counters.num_draft_tokens += num_drafted
        counters.num_accepted_tokens += len(verified.accepted)


def _num_prompt_tokens(entry: ScheduledSequence) -> int:
    """How many of a scheduled sequence's new tokens belong to its prompt."""
    left = entry.sequence.num_prompt_tokens - entry.sequence.num_computed_tokens
    return max(0, min(entry.num_new_tokens, left))
