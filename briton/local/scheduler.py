"""What runs next. One rule: computed tokens catch up with tokens, as many a step as its budget has.

There is no prefill phase and no decode phase. In-flight batching, chunked prefill, prefix reuse and preemption by
recompute all follow from that rule. Decides only: no model, no chunks, and of the clock just what time it is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from briton.engine.budget import prompt_tokens
from briton.engine.order import CallerCounters, OrderRules, Rank
from briton.engine.output_lengths import OutputLengths
from briton.engine.step_cost import StepCost, StepShape
from briton.local.block_manager import BlockManager
from briton.local.draft import Draft
from briton.local.plan import ScheduledSequence, StepPlan
from briton.local.sequence import RequestState, SequenceState
from briton.local.settings import SchedulerPolicy
from briton.local.waiting_queue import WaitingQueue, rank_of


@dataclass(slots=True)
class Policies:
    """What the scheduler asks: how long steps take, how long outputs become, who was served how much."""

    cost: StepCost = field(default_factory=StepCost)
    lengths: OutputLengths = field(default_factory=OutputLengths)
    counters: CallerCounters = field(default_factory=CallerCounters)
    rules: OrderRules = field(default_factory=OrderRules)
    target_inter_token_s: float | None = None  # the time between tokens that running streams are to keep beside prompts
    clock: Callable[[], float] = time.monotonic


class Scheduler:
    """Running and waiting sequences, and the two capacity policies of TensorRT-LLM's batch manager.

    guaranteed_no_evict starts a sequence only when the cache can hold all that it may ever write, beside all that
    runs, and never stops it. That holds for limits that callers gave: where nobody set one, the length that outputs
    seldom exceed is reserved, and in the rare overflow the least important of such sequences gives way.
    max_utilization starts as much as fits now, and when the cache runs full the least important sequence gives way. It
    waits again, and computes its tokens anew: its cached blocks permitting, it finds them.
    """

    def __init__(
        self,
        blocks: BlockManager,
        *,
        max_batch_size: int,
        max_num_tokens: int,
        policy: SchedulerPolicy,
        enable_chunked_context: bool = True,
        policies: Policies | None = None,
    ) -> None:
        self.blocks = blocks
        self.running: list[SequenceState] = []  # in admission order
        self.num_preemptions = 0
        self.num_cached_tokens = 0  # prompt tokens found in the cache, since start
        self.num_waiting_requests = 0  # none of whose sequences was ever started
        self.policies = policies or Policies()
        self._waiting = WaitingQueue(self.policies.rules, self.policies.counters)
        self._num_open: dict[str, int] = {}  # requests of each caller
        self._priorities: Counter[int] = Counter()  # of open requests, as far as they count
        self._highest = 0  # priority of all open requests, in this step
        self._max_batch_size = min(max_batch_size, max_num_tokens)  # each gets a token a step
        self._max_num_tokens = max_num_tokens
        self._guarantees = policy == "guaranteed_no_evict"
        self._chunked = enable_chunked_context

    @property
    def has_work(self) -> bool:
        """Whether anything runs or waits."""
        return bool(self.running or self._waiting)

    @property
    def waiting(self) -> list[SequenceState]:
        """Waiting sequences, in no particular order."""
        return list(self._waiting)

    @property
    def num_waiting_sequences(self) -> int:
        """Sequences that wait: of new requests, siblings, and preempted ones."""
        return len(self._waiting)

    def add(self, state: RequestState) -> None:
        """Queue a request's first sequence; the others follow when it has computed the prompt, and find it in the
        cache."""
        caller = state.request.caller
        if caller not in self._num_open:
            self.policies.counters.join(caller, self._num_open)
        self._num_open[caller] = self._num_open.get(caller, 0) + 1
        self._priorities[self._priority(state)] += 1
        self.num_waiting_requests += 1
        self._waiting.push(state.sequences[0])

    def leave(self, state: RequestState) -> None:
        """A request has ended, with all of its sequences."""
        caller, priority = state.request.caller, self._priority(state)
        self._priorities[priority] -= 1
        if not self._priorities[priority]:
            del self._priorities[priority]
        self._num_open[caller] -= 1
        if self._num_open[caller] == 0:
            del self._num_open[caller]
            self.policies.counters.leave(caller, self._num_open)

    def schedule(self) -> StepPlan:
        """The next step: who generates first, then prompts in order. Empty only when nothing runs or waits."""
        now = self.policies.clock()
        self._highest = max(self._priorities, default=0)
        plan: StepPlan = []
        decoding = [s for s in self.running if s.num_output_tokens > 0 and self._missing(s) <= self.blocks.block_size]
        is_decoding = {id(sequence) for sequence in decoding}
        budget, preempted = self._continue(plan, decoding, self._max_num_tokens, now)
        prompts = [sequence for sequence in self.running if id(sequence) not in is_decoding]
        if prompts or self._waiting:  # else nobody asks for the budget, which takes its time to find
            budget = self._prompt_budget(plan, budget)
            prompts.sort(key=lambda s: self._rank(s, now))
            budget, also = self._continue(plan, prompts, budget, now)
            if not (preempted or also):
                self._admit(plan, budget, now)
        return plan

    def attach_drafts(self, plan: StepPlan, drafts: Sequence[Draft | None]) -> StepPlan:
        """The plan with its sequences' drafts, as far as there are blocks that were promised to nobody. What does not
        fit is cut: a draft stops no sequence."""
        unpromised = self.blocks.num_free_blocks - self._reserved()
        result: StepPlan = []
        for entry, proposed in zip(plan, drafts, strict=True):
            sequence, draft = entry.sequence, proposed
            if draft is not None:
                own = max(self.blocks.blocks_for(self._likely_end(sequence)), len(sequence.block_table))
                room = (own + max(0, unpromised)) * self.blocks.block_size - sequence.num_tokens
                draft = draft if len(draft) <= room else draft.cut(max(0, room))
                end = sequence.num_tokens + len(draft)
                missing = self.blocks.blocks_missing(sequence, end)
                if missing and missing > self._extendable(sequence):
                    draft, end = draft.cut(0), sequence.num_tokens  # what is likely was reserved, and others took it
                unpromised -= max(0, self.blocks.blocks_for(end) - own)
                self.blocks.extend(sequence, end)
            result.append(entry._replace(draft=draft or None))
        return result

    def update(self, sequence: SequenceState, num_new_tokens: int, num_output_tokens: int = 0) -> None:
        """Book computed tokens of one scheduled sequence, and what it gave its caller; blocks that only a draft needed
        go back."""
        sequence.num_computed_tokens += num_new_tokens
        num_prompt = min(sequence.num_computed_tokens, sequence.num_prompt_tokens)
        new = max(0, num_prompt - sequence.num_charged_tokens)
        sequence.num_charged_tokens += new
        self.policies.counters.charge(sequence.request.caller, new, num_output_tokens)
        self.blocks.commit(sequence)
        self.blocks.trim(sequence)

    def start_siblings(self, state: RequestState) -> None:
        """Queue the other n - 1 sequences, now that the prompt's blocks can be shared, and their hashes are known."""
        first, *others = state.sequences
        hashes = first.block_hashes[: first.num_prompt_tokens // self.blocks.block_size]
        for sequence in others:
            if sequence.finish_reason is not None:
                continue  # cancelled before it started
            sequence.token_ids.extend(state.request.prompt_token_ids)
            sequence.block_hashes.extend(hashes)
            self._waiting.push(sequence)

    def finish(self, sequence: SequenceState) -> None:
        """Free a sequence that has ended, wherever it is."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.blocks.free(sequence)
            if not sequence.request.has_limit and sequence.num_output_tokens:
                self.policies.lengths.observe(sequence.num_output_tokens)  # cut by a stop string it is no longer either
        elif self._waiting.remove(sequence) and sequence.request_state.scheduled_at is None:
            self.num_waiting_requests -= 1

    def check_invariants(self) -> None:
        """Raise AssertionError unless queues and blocks are consistent."""
        assert len(set(map(id, self.running))) == len(self.running) <= self._max_batch_size
        assert all(not sequence.block_table for sequence in self.waiting), "a waiting sequence holds blocks"
        assert not {id(s) for s in self.running} & {id(s) for s in self.waiting}
        self.blocks.check_invariants(self.running)
        assert self._promised() <= self.blocks.num_free_blocks, "more was promised than is free"

    def _prompt_budget(self, plan: StepPlan, most: int) -> int:
        """Tokens of prompts in a step with these sequences that generate."""
        policies = self.policies
        if not self._chunked or policies.target_inter_token_s is None or not plan:
            return most
        shape = step_shape(plan)
        first = next((s for s in self.running if s.num_output_tokens == 0), None)
        num_past = 0 if first is None else first.num_computed_tokens
        return prompt_tokens(policies.cost, shape, num_past, target_s=policies.target_inter_token_s, most=most)

    def _continue(
        self, plan: StepPlan, sequences: Sequence[SequenceState], budget: int, now: float
    ) -> tuple[int, bool]:
        """Add to the plan what running sequences compute next, in this order: the budget that is left, and whether
        somebody gave way, who is then no longer in the plan."""
        preempted = False
        for sequence in sequences:
            if not sequence.block_table:
                continue  # preempted further up in this loop
            count = self._take(sequence, sequence.num_computed_tokens, budget)
            if count == 0:
                break
            preempted |= self._make_room(sequence, sequence.num_computed_tokens + count, now)
            if sequence.block_table:
                plan.append(ScheduledSequence(sequence, count))
                budget -= count
        plan[:] = [entry for entry in plan if entry.sequence.block_table]
        return budget, preempted

    def _make_room(self, sequence: SequenceState, num_tokens: int, now: float) -> bool:
        """Extend a running sequence to `num_tokens`. Whoever is least important gives way until it fits, in the end
        the sequence itself; True when somebody did."""
        preempted = False
        # Most steps need no new block: only the others ask what is promised to all that run.
        while (missing := self.blocks.blocks_missing(sequence, num_tokens)) and missing > self._extendable(sequence):
            victim = max((s for s in self.running if self._may_give_way(s)), key=lambda s: self._rank(s, now))
            self._preempt(victim)
            preempted = True
            if victim is sequence:
                return True
        self.blocks.extend(sequence, num_tokens)
        return preempted

    def _extendable(self, sequence: SequenceState) -> int:
        """Free blocks that a running sequence may take: whoever was promised nothing leaves what others were."""
        free = self.blocks.num_free_blocks
        return free if self._is_promised(sequence) else free - self._promised()

    def _may_give_way(self, sequence: SequenceState) -> bool:
        return bool(sequence.block_table) and not self._is_promised(sequence)

    def _is_promised(self, sequence: SequenceState) -> bool:
        """Whether the cache is guaranteed to hold all it may ever write."""
        return self._guarantees and sequence.request.has_limit

    def _admit(self, plan: StepPlan, budget: int, now: float) -> None:
        if not self._waiting:
            return
        unpromised = self.blocks.num_free_blocks - self._reserved()
        while budget > 0 and len(self.running) < self._max_batch_size:
            sequence = self._waiting.first(now, self._highest)
            if sequence is None:
                return
            matched = self.blocks.match_prefix(sequence)
            num_cached = len(matched) * self.blocks.block_size
            count = self._take(sequence, num_cached, budget)
            if count == 0:
                return
            end = max(self._likely_end(sequence), num_cached + count)
            needed = self.blocks.blocks_for(end) - len(matched) + self.blocks.num_free_among(matched)
            if needed > unpromised:
                return  # nobody behind it overtakes: no starvation
            self._waiting.remove(sequence)
            self.blocks.take_prefix(sequence, matched)
            sequence.num_charged_tokens = max(sequence.num_charged_tokens, min(num_cached, sequence.num_prompt_tokens))
            sequence.started_at = now
            sequence.served_at_start = self.policies.counters.served(sequence.request.caller)
            self.blocks.extend(sequence, num_cached + count)
            self.running.append(sequence)
            self._note_start(sequence, num_cached)
            plan.append(ScheduledSequence(sequence, count))
            budget -= count
            unpromised -= needed

    def _note_start(self, sequence: SequenceState, num_cached: int) -> None:
        state = sequence.request_state
        if state.scheduled_at is None:
            state.scheduled_at = self.policies.clock()
            state.cached_tokens = num_cached
            self.num_cached_tokens += num_cached
            self.num_waiting_requests -= 1

    def _likely_end(self, sequence: SequenceState) -> int:
        """The length for which a sequence's blocks are reserved; 0: none are."""
        if not self._guarantees:
            return 0
        if sequence.request.has_limit:
            return sequence.max_num_tokens
        likely = self.policies.lengths.likely_end(sequence.num_output_tokens)
        return min(sequence.max_num_tokens, sequence.num_prompt_tokens + likely)

    def _reserved(self) -> int:
        """Free blocks that running sequences may still need, and that are kept for them."""
        return sum(self.blocks.blocks_missing(s, self._likely_end(s)) for s in self.running)

    def _promised(self) -> int:
        """Of those, what is guaranteed."""
        if not self._guarantees:
            return 0
        return sum(self.blocks.blocks_missing(s, s.max_num_tokens) for s in self.running if s.request.has_limit)

    def _missing(self, sequence: SequenceState) -> int:
        return sequence.num_tokens - sequence.num_computed_tokens

    def _take(self, sequence: SequenceState, num_computed: int, budget: int) -> int:
        """How many tokens of a sequence of which `num_computed` are computed a step computes; 0: it has to wait.

        The last step of a prompt begins where its last block does, which is as far as the cache can help the next
        time: so the same prompt is answered by the same computation whether it is found or not, in any precision.
        """
        missing = sequence.num_tokens - num_computed
        if not self._may_chunk(sequence):
            return missing if missing <= budget else 0
        last_block = (sequence.num_tokens - 1) // self.blocks.block_size * self.blocks.block_size
        if num_computed < last_block:
            missing = last_block - num_computed
        return min(missing, budget)

    def _may_chunk(self, sequence: SequenceState) -> bool:
        """Prompts are computed whole when chunked context is off; a preempted sequence may have outgrown a step, and
        is chunked all the same."""
        return self._chunked or sequence.num_output_tokens > 0

    def _rank(self, sequence: SequenceState, now: float) -> Rank:
        return rank_of(sequence, now, self._highest, self.policies.rules, self.policies.counters)

    def _priority(self, state: RequestState) -> int:
        return min(state.request.priority, self.policies.rules.max_priority)

    def _preempt(self, sequence: SequenceState) -> None:
        self.running.remove(sequence)
        self.blocks.free(sequence)
        sequence.started_at = None
        self._waiting.push(sequence)
        self.num_preemptions += 1


def step_shape(plan: StepPlan) -> StepShape:
    """What decides the cost of a plan, drafts included."""
    num_tokens = num_rows = attended = 0
    for entry in plan:
        count = entry.num_new_tokens + len(entry.draft or ())
        num_tokens += count
        num_rows += entry.num_rows if entry.samples else 0
        attended += count * entry.sequence.num_computed_tokens + count * (count + 1) // 2
    return StepShape(num_tokens, num_rows, attended)
