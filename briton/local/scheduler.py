"""What runs next. One rule: computed tokens catch up with tokens, at most `max_num_tokens` of them a step.

There is no prefill phase and no decode phase. In-flight batching, chunked context, prefix reuse and preemption by
recompute all follow from that rule. Decides only: no model, no clock but for time stamps, no chunks.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence

from briton.local.block_manager import BlockManager
from briton.local.draft import Draft
from briton.local.plan import ScheduledSequence, StepPlan
from briton.local.sequence import RequestState, SequenceState
from briton.local.settings import SchedulerPolicy


class Scheduler:
    """Running and waiting sequences, and the two capacity policies of TensorRT-LLM's batch manager.

    guaranteed_no_evict starts a sequence only when the cache can hold all it may ever write, beside all that runs:
    nothing that started is ever stopped. max_utilization starts as much as fits now, and when the cache runs full stops
    the sequence that was started last: it waits again, and computes its tokens anew, but for those that it still finds
    in the cache.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_batch_size: int,
        max_num_tokens: int,
        policy: SchedulerPolicy,
        enable_chunked_context: bool = True,
    ) -> None:
        self.blocks = blocks
        self.running: list[SequenceState] = []  # in admission order
        self.num_preemptions = 0
        self.num_cached_tokens = 0  # prompt tokens found in the cache, since start
        self.num_waiting_requests = 0  # none of whose sequences was ever started
        self._waiting: set[SequenceState] = set()
        self._queue: list[tuple[tuple[int, int, int], SequenceState]] = []  # a heap of those, and of some that left
        self._max_batch_size = max_batch_size
        self._max_num_tokens = max_num_tokens
        self._policy = policy
        self._chunked = enable_chunked_context

    @property
    def has_work(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.running or self._waiting)

    @property
    def waiting(self) -> list[SequenceState]:
        """Waiting sequences, in no particular order."""
        return list(self._waiting)

    def add(self, state: RequestState) -> None:
        """Queue a request's first sequence; the others follow when it has computed the prompt, and find it in the
        cache."""
        self.num_waiting_requests += 1
        self._push(state.sequences[0])

    def schedule(self) -> StepPlan:
        """The next step, oldest sequence first. Empty only when nothing runs or waits."""
        plan: StepPlan = []
        budget = self._max_num_tokens
        preempted = False
        for sequence in list(self.running):
            if not sequence.block_table:
                continue  # preempted further up in this loop
            count = self._take(sequence, budget)
            if count == 0:
                break
            while not self.blocks.can_extend(sequence, sequence.num_computed_tokens + count):
                victim = self.running[-1]
                self._preempt(victim)
                preempted = True
                if victim is sequence:
                    break
            else:
                self.blocks.extend(sequence, sequence.num_computed_tokens + count)
                plan.append(ScheduledSequence(sequence, count))
                budget -= count
        if not preempted:
            self._admit(plan, budget)
        return plan

    def attach_drafts(self, plan: StepPlan, drafts: Sequence[Draft | None]) -> StepPlan:
        """The plan with its sequences' drafts, as far as there are blocks that were promised to nobody. What does not
        fit is cut: a draft stops no sequence."""
        unpromised = self.blocks.num_free_blocks - self._reserved()
        result: StepPlan = []
        for entry, proposed in zip(plan, drafts, strict=True):
            sequence, draft = entry.sequence, proposed
            if draft is not None:
                promised = sequence.max_num_tokens if self._policy == "guaranteed_no_evict" else 0
                own = max(self.blocks.blocks_for(promised), len(sequence.block_table))
                room = (own + unpromised) * self.blocks.block_size - sequence.num_tokens
                draft = draft if len(draft) <= room else draft.cut(room)
                end = sequence.num_tokens + len(draft)
                unpromised -= max(0, self.blocks.blocks_for(end) - own)
                self.blocks.extend(sequence, end)
            result.append(entry._replace(draft=draft or None))
        return result

    def update(self, sequence: SequenceState, num_new_tokens: int) -> None:
        """Book computed tokens of one scheduled sequence; blocks that only a draft needed go back."""
        sequence.num_computed_tokens += num_new_tokens
        self.blocks.commit(sequence)
        self.blocks.trim(sequence)

    def start_siblings(self, state: RequestState) -> None:
        """Queue the other n - 1 sequences, now that the prompt's blocks can be shared."""
        for sequence in state.sequences[1:]:
            sequence.token_ids.extend(state.request.prompt_token_ids)
            self._push(sequence)

    def finish(self, sequence: SequenceState) -> None:
        """Free a sequence that has ended, wherever it is. One that waits leaves a gap in the queue, which is put in
        order again when half of it are gaps: many that leave at once cost no more than they did to come."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.blocks.free(sequence)
            return
        if sequence in self._waiting:
            self._waiting.remove(sequence)
            if sequence.request_state.scheduled_at is None:
                self.num_waiting_requests -= 1
            if len(self._queue) > 2 * len(self._waiting):  # gaps still hold their prompts
                self._queue = [entry for entry in self._queue if entry[1] in self._waiting]
                heapq.heapify(self._queue)

    def check_invariants(self) -> None:
        """Raise AssertionError unless queues and blocks are consistent."""
        assert len(set(map(id, self.running))) == len(self.running) <= self._max_batch_size
        assert all(not sequence.block_table for sequence in self.waiting), "a waiting sequence holds blocks"
        assert not {id(s) for s in self.running} & {id(s) for s in self.waiting}
        queued = [sequence for _, sequence in self._queue if sequence in self._waiting]
        assert len(queued) == len(self._waiting), "a sequence waits outside the queue, or twice in it"
        self.blocks.check_invariants(self.running)
        if self._policy == "guaranteed_no_evict":
            assert self._reserved() <= self.blocks.num_free_blocks, "more was promised than is free"

    def _admit(self, plan: StepPlan, budget: int) -> None:
        if not self._waiting:
            return
        unpromised = self.blocks.num_free_blocks - self._reserved()
        while self._waiting and budget > 0 and len(self.running) < self._max_batch_size:
            sequence = self._head()
            matched = self.blocks.match_prefix(sequence)
            num_cached = len(matched) * self.blocks.block_size
            count = min(sequence.num_tokens - num_cached, budget)
            if count < sequence.num_tokens - num_cached and not self._may_chunk(sequence):
                return
            end = sequence.max_num_tokens if self._policy == "guaranteed_no_evict" else num_cached + count
            needed = self.blocks.blocks_for(end) - len(matched) + self.blocks.num_free_among(matched)
            if needed > unpromised:
                return  # nobody behind it overtakes: no starvation
            heapq.heappop(self._queue)
            self._waiting.remove(sequence)
            self.blocks.take_prefix(sequence, matched)
            self.blocks.extend(sequence, num_cached + count)
            self.running.append(sequence)
            self._note_start(sequence, num_cached)
            plan.append(ScheduledSequence(sequence, count))
            budget -= count
            unpromised -= needed

    def _note_start(self, sequence: SequenceState, num_cached: int) -> None:
        state = sequence.request_state
        if state.scheduled_at is None:
            state.scheduled_at = time.monotonic()
            state.cached_tokens = num_cached
            self.num_cached_tokens += num_cached
            self.num_waiting_requests -= 1

    def _reserved(self) -> int:
        """Free blocks that running sequences may still need, and that were promised to them."""
        if self._policy != "guaranteed_no_evict":
            return 0
        return sum(self.blocks.blocks_missing(s, s.max_num_tokens) for s in self.running)

    def _take(self, sequence: SequenceState, budget: int) -> int:
        missing = sequence.num_tokens - sequence.num_computed_tokens
        return min(missing, budget) if missing <= budget or self._may_chunk(sequence) else 0

    def _may_chunk(self, sequence: SequenceState) -> bool:
        """Prompts are computed whole when chunked context is off; a preempted sequence may have outgrown a step, and
        is chunked all the same."""
        return self._chunked or sequence.num_output_tokens > 0

    def _preempt(self, sequence: SequenceState) -> None:
        self.running.remove(sequence)
        self.blocks.free(sequence)
        self._push(sequence)
        self.num_preemptions += 1

    def _push(self, sequence: SequenceState) -> None:
        self._waiting.add(sequence)
        heapq.heappush(self._queue, (sequence.order, sequence))

    def _head(self) -> SequenceState:
        """The first of those that wait; what has left the queue goes on the way."""
        while self._queue[0][1] not in self._waiting:
            heapq.heappop(self._queue)
        return self._queue[0][1]
