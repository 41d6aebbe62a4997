"""The loop under random traffic, and what scheduler and block manager promise of single steps."""

from __future__ import annotations

import gc
import heapq
import random
import weakref
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, NamedTuple, cast

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from briton.config.lookahead import LookaheadConfig
from briton.engine.types import FinishReason, GenerationRequest, SamplingParams, TokenChunk
from briton.guidance.guide import Guide
from briton.local import block_manager
from briton.local.block_manager import BlockManager
from briton.local.draft import ROOT, Draft
from briton.local.lookahead.costs import CostCurve
from briton.local.lookahead.drafter import Drafter
from briton.local.lookahead.speculator import Speculator
from briton.local.plan import ScheduledSequence, StepInputs, StepPlan, step_inputs
from briton.local.sampler import StepLogits
from briton.local.scheduler import Scheduler
from briton.local.sequence import RequestState, SequenceState
from briton.local.settings import SchedulerPolicy
from briton.local.step_loop import StepLoop
from briton.local.verification import Verified
from tests.local.paged_model import EOS, VOCAB_SIZE, PagedModel, greedy, model_info
from tests.scripted_guide import ScriptedGuide

BLOCK_SIZE = 4
MAX_NUM_TOKENS = 10
PREFIXES = [tuple(range(1, 13)), tuple(range(20, 30)), ()]


class ScriptedSpeculator:
    """Drafts what a function says."""

    def __init__(self, draft: Callable[[ScheduledSequence], Draft | None]) -> None:
        self._draft = draft
        self.known: Collection[SequenceState] = ()

    def with_drafts(self, plan: StepPlan, attach: Callable[[StepPlan, list[Draft | None]], StepPlan]) -> StepPlan:
        return attach(plan, [self._draft(entry) for entry in plan])

    def update(self, entry: ScheduledSequence, verified: Verified, logits: StepLogits, row: int) -> None: ...

    def forget(self, sequence: SequenceState) -> None: ...

    def forget_all(self) -> None: ...


class Loop:
    """The executor's loop without its thread. The books are checked before and after each step's computation."""

    def __init__(
        self,
        policy: SchedulerPolicy,
        num_blocks: int,
        *,
        chunked: bool = True,
        drafts: Callable[[ScheduledSequence], Draft | None] | None = None,
        lookahead: LookaheadConfig | None = None,
    ) -> None:
        info = model_info(num_blocks, BLOCK_SIZE, max_batch_size=4, max_num_tokens=MAX_NUM_TOKENS)
        if lookahead is not None:
            info = replace(info, lookahead=lookahead, enable_b10_lookahead=True, max_draft_tokens=6)
        self._loop = StepLoop(info, policy=policy, enable_chunked_context=chunked, costs=CostCurve.flat())
        if drafts is not None:
            self._loop.speculator = cast("Speculator", ScriptedSpeculator(drafts))
        self.model = PagedModel(num_blocks, BLOCK_SIZE)
        self.scheduler, self.counters = self._loop.scheduler, self._loop.counters
        self.outputs: dict[tuple[int, int], list[int]] = {}
        self.finals: dict[int, TokenChunk] = {}
        self.requests: list[RequestState] = []

    def add(
        self,
        prompt: tuple[int, ...],
        max_tokens: int,
        n: int = 1,
        priority: int = 0,
        *,
        salt: str = "",
        guide: Guide | None = None,
        stream: bool = True,
    ) -> RequestState:
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0, n=n)
        state = RequestState.create(
            GenerationRequest(len(self.requests), prompt, sampling, guide, priority, cache_salt=salt, stream=stream)
        )
        self.requests.append(state)
        self._loop.add(state)
        return state

    def step(self) -> bool:
        """False where nothing is left to do."""
        chunks: list[TokenChunk] = []
        plan = self._loop.step(self._forward, chunks)
        if not plan:
            assert not self._loop.has_work, "work is left, and nothing was scheduled"
            return False
        assert sum(entry.num_new_tokens for entry in plan) <= MAX_NUM_TOKENS
        assert all(entry.num_new_tokens > 0 for entry in plan)
        self._take(chunks)
        for sequence in self.scheduler.running:
            assert len(sequence.block_table) == self._loop.blocks.blocks_for(sequence.num_computed_tokens)
        return True

    def run(self) -> int:
        """Until nothing is left to do; the number of steps."""
        for num_steps in range(2000):
            if not self.step():
                return num_steps
        pytest.fail("the traffic never drained")

    def cancel(self, state: RequestState) -> None:
        if not state.has_ended:
            self._take([self._loop.end(state, FinishReason.CANCELLED)])

    def shutdown(self) -> None:
        states = [state for state in self.requests if not state.has_ended]
        for chunk in self._loop.end_all(states, FinishReason.CANCELLED):
            self.finals[chunk.request_id] = chunk

    @property
    def speculator(self) -> Speculator:
        assert self._loop.speculator is not None
        return self._loop.speculator

    def check_nothing_kept(self) -> None:
        """Of any sequence."""
        assert not self._loop.output.held
        assert self._loop.speculator is None or not self._loop.speculator.known

    def _forward(self, inputs: StepInputs) -> NDArray[np.float32]:
        self._loop.check_invariants()
        return self.model.forward(inputs)

    def _take(self, chunks: list[TokenChunk]) -> None:
        for chunk in chunks:
            assert chunk.request_id not in self.finals, "a chunk after the final one"
            self.outputs.setdefault((chunk.request_id, chunk.index), []).extend(chunk.token_ids)
            if chunk.is_final:
                self.finals[chunk.request_id] = chunk
        self._loop.check_invariants()


class Arrival(NamedTuple):
    """A request, and what happens around it."""

    prefix: tuple[int, ...]
    rest: list[int]
    max_tokens: int
    n: int
    priority: int
    stream: bool
    fails_after: int | None  # tokens: its guide allows the right ones, then none
    steps: int  # before the next arrives
    cancels: int | None  # which one, then


arrivals = st.lists(
    st.builds(
        Arrival,
        st.sampled_from(PREFIXES),
        st.lists(st.integers(1, VOCAB_SIZE - 1), min_size=1, max_size=14),
        max_tokens=st.integers(1, 12),
        n=st.integers(1, 3),
        priority=st.integers(0, 2),
        stream=st.booleans(),
        fails_after=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 5)),
        steps=st.integers(0, 6),
        cancels=st.one_of(st.none(), st.integers(0, 8)),
    ),
    min_size=1,
    max_size=14,
)


def failing(prompt: tuple[int, ...], num_tokens: int) -> ScriptedGuide:
    """Allows so many right tokens, and then nothing at all."""
    return ScriptedGuide([*([token] for token in greedy(prompt, num_tokens, stop=None)), []], [EOS])


def random_drafts(seed: int) -> Callable[[ScheduledSequence], Draft | None]:
    """Trees of right and wrong guesses, of which a branch that is not the first may be right; sometimes with a
    window. They may be longer than what is left of the output."""
    rng = random.Random(seed)

    def draft(entry: ScheduledSequence) -> Draft | None:
        if not entry.samples or rng.random() < 0.3:
            return None
        right = greedy(tuple(entry.sequence.token_ids), 6, stop=None)
        branches = []
        for _ in range(rng.randint(1, 3)):
            branch = right[: rng.randint(1, 6)]
            if rng.random() < 0.6:
                branch[rng.randrange(len(branch))] = rng.randrange(VOCAB_SIZE)
            branches.append(branch)
        made = Draft.trie(branches)
        if rng.random() < 0.7:
            return made
        n = len(made)
        return Draft((*made.token_ids, 1, 2, 3), (*made.parents, ROOT, n, n + 1), n, (n + 2,))

    return draft


@pytest.mark.parametrize("policy", ["guaranteed_no_evict", "max_utilization"])
@pytest.mark.parametrize("drafted", ["no drafts", "any drafts", "lookahead"])
@settings(max_examples=60, deadline=None)
@given(arrivals=arrivals, num_blocks=st.integers(10, 40), seed=st.integers(0, 1000), is_cut_short=st.booleans())
def test_random_traffic(
    policy: SchedulerPolicy, drafted: str, arrivals: list[Arrival], num_blocks: int, seed: int, is_cut_short: bool
) -> None:
    """Every output is what it is alone, every request has one final chunk, and of none anything is kept: whether it
    ended by itself, was cancelled, failed, was preempted on the way, or was open at shutdown."""
    loop = Loop(
        policy,
        num_blocks,
        drafts=random_drafts(seed) if drafted == "any drafts" else None,
        lookahead=LookaheadConfig(3, 3, 2) if drafted == "lookahead" else None,
    )
    for arrival in arrivals:
        prompt = arrival.prefix + tuple(arrival.rest)
        guide = None if arrival.fails_after is None else failing(prompt, arrival.fails_after)
        loop.add(prompt, arrival.max_tokens, arrival.n, arrival.priority, guide=guide, stream=arrival.stream)
        for _ in range(arrival.steps):
            loop.step()
        if arrival.cancels is not None and arrival.cancels < len(loop.requests):
            loop.cancel(loop.requests[arrival.cancels])
    if is_cut_short:
        loop.shutdown()
    else:
        loop.run()
        assert loop.scheduler.blocks.num_free_blocks == num_blocks
    loop.check_nothing_kept()
    for state in loop.requests:
        final = loop.finals[state.request.request_id]
        expected = greedy(state.request.prompt_token_ids, state.request.sampling.max_tokens)
        for sequence in state.sequences:
            got = loop.outputs.get((state.request.request_id, sequence.index), [])
            if final.finish_reason in (FinishReason.CANCELLED, FinishReason.ERROR):
                assert got == expected[: len(got)]
            else:
                assert got == expected
        if final.finish_reason is FinishReason.ERROR:
            assert state.request.guide is not None
            assert "allows no token" in str(final.error)
    if policy == "guaranteed_no_evict":
        assert loop.counters.num_requests == len(arrivals)
        assert loop.scheduler.num_preemptions == 0


def test_drafts_save_steps_and_their_blocks_go_back() -> None:
    def draft(entry: ScheduledSequence) -> Draft:
        return Draft.chain(greedy(tuple(entry.sequence.token_ids), 5, stop=None))

    loop = Loop("guaranteed_no_evict", num_blocks=32, drafts=draft)
    loop.add((1, 2, 3), 12)
    assert loop.run() == 2
    assert loop.outputs[(0, 0)] == greedy((1, 2, 3), 12)
    assert loop.counters.num_accepted_tokens == 10


def test_a_right_branch_behind_a_wrong_one_is_computed_again() -> None:
    def draft(entry: ScheduledSequence) -> Draft:
        right = greedy(tuple(entry.sequence.token_ids), 3, stop=None)
        return Draft.trie([[(right[0] + 1) % VOCAB_SIZE, 5, 5], right])

    loop = Loop("guaranteed_no_evict", num_blocks=32, drafts=draft)
    sequence = loop.add((1, 2, 3), 12).sequences[0]
    loop.step()
    assert len(loop.outputs[(0, 0)]) == 4
    assert sequence.num_computed_tokens == 3, "the accepted tokens lie behind the wrong branch"
    loop.run()
    assert loop.outputs[(0, 0)] == greedy((1, 2, 3), 12)


def test_max_utilization_preempts_and_loses_nothing() -> None:
    loop = Loop("max_utilization", num_blocks=6)
    requests = [loop.add(tuple(range(i, i + 8)), 12) for i in (1, 20, 40)]
    loop.run()
    assert loop.scheduler.num_preemptions > 0
    for state in requests:
        prompt = state.request.prompt_token_ids
        assert loop.outputs[(state.request.request_id, 0)] == greedy(prompt, 12)


def test_a_preempted_sequence_keeps_its_drafter() -> None:
    """It comes back, and what its drafter has learned of the prompt need not be learned again."""
    loop = Loop("max_utilization", num_blocks=6, lookahead=LookaheadConfig(8, 1, 1))
    for i in (1, 20, 40):
        loop.add(tuple(range(i, i + 8)), 12)
    speculator = loop.speculator
    before: dict[SequenceState, Drafter | None] = {}
    while loop.scheduler.num_preemptions == 0:
        before = dict(speculator._drafters)
        assert loop.step()
    (victim,) = (sequence for sequence in loop.scheduler.waiting if sequence in before)
    assert before[victim] is not None
    assert speculator._drafters[victim] is before[victim]
    loop.run()
    loop.check_nothing_kept()


def test_guaranteed_no_evict_waits_for_room() -> None:
    loop = Loop("guaranteed_no_evict", num_blocks=6)
    for i in (1, 20):
        loop.add(tuple(range(i, i + 8)), 12)  # 5 blocks each at their longest
    loop.step()
    assert len(loop.scheduler.running) == 1
    assert loop.scheduler.num_waiting_requests == 1


def test_prompt_is_computed_in_chunks_beside_decoding() -> None:
    loop = Loop("guaranteed_no_evict", num_blocks=32)
    loop.add((1, 2, 3), 12)
    loop.step()
    loop.add(tuple(range(1, 26)), 2)
    before = len(loop.outputs[(0, 0)])
    loop.step()
    loop.step()
    assert loop.model.num_tokens_seen[-2:] == [MAX_NUM_TOKENS, MAX_NUM_TOKENS]
    assert len(loop.outputs[(0, 0)]) == before + 2, "the long prompt held up the running sequence"


def test_without_chunked_context_a_prompt_is_computed_whole() -> None:
    loop = Loop("guaranteed_no_evict", num_blocks=32, chunked=False)
    for start in (1, 20):
        loop.add(tuple(range(start, start + 8)), 2)
    loop.step()
    assert loop.model.num_tokens_seen == [8], "the second prompt fits no more, and must not be cut"


def test_prefix_is_reused_and_salt_separates() -> None:
    loop = Loop("guaranteed_no_evict", num_blocks=32)
    prompt = tuple(range(1, 12))
    requests = []
    for salt in ("", "", "other", "other"):
        requests.append(loop.add(prompt, 2, salt=salt))
        loop.run()
    assert [r.cached_tokens for r in requests] == [0, 8, 0, 8]


def test_siblings_share_the_blocks_of_the_prompt() -> None:
    loop = Loop("guaranteed_no_evict", num_blocks=32)
    request = loop.add(tuple(range(1, 11)), 5, n=3)
    for _ in range(3):  # the prompt up to its last block, the last block, and the siblings
        loop.step()
    tables = [s.block_table[:2] for s in request.sequences]
    assert tables[0] == tables[1] == tables[2]


def test_priority_goes_first_and_equals_keep_their_order() -> None:
    loop = Loop("guaranteed_no_evict", num_blocks=5)
    for i, priority in enumerate((0, 0, 5)):
        loop.add(tuple(range(i * 20 + 1, i * 20 + 9)), 12, priority=priority)
    order: list[int] = []
    while loop.step():
        for sequence in loop.scheduler.running:
            if sequence.request.request_id not in order:
                order.append(sequence.request.request_id)
    assert order == [2, 0, 1]


def test_least_recently_used_prefix_goes_first() -> None:
    loop = Loop("guaranteed_no_evict", num_blocks=8)
    old, new = tuple(range(1, 10)), tuple(range(20, 29))
    for prompt in (old, new):
        loop.add(prompt, 1)
        loop.run()
    loop.add(tuple(range(40, 56)), 1)  # takes 5 of 8 blocks: those never used, then the oldest
    loop.run()
    blocks = loop.scheduler.blocks
    hits = [
        len(blocks.match_prefix(RequestState.create(GenerationRequest(0, p, SamplingParams())).sequences[0]))
        for p in (old, new)
    ]
    assert hits[1] == 2
    assert hits[0] < 2


def test_invariants_see_a_leak() -> None:
    """A check that cannot fail is no check."""
    loop = Loop("guaranteed_no_evict", num_blocks=8)
    request = loop.add(tuple(range(1, 10)), 4)
    loop.step()
    loop.scheduler.check_invariants()
    leaked = request.sequences[0].block_table.pop()
    with pytest.raises(AssertionError):
        loop.scheduler.check_invariants()
    request.sequences[0].block_table.append(leaked)
    loop.scheduler.blocks._ref_counts[leaked] += 1
    with pytest.raises(AssertionError, match="ref count"):
        loop.scheduler.check_invariants()


def test_step_inputs_are_flat_and_typed() -> None:
    loop = Loop("guaranteed_no_evict", num_blocks=32)
    loop.add((1, 2, 3), 4)
    loop.add((7, 8, 9, 10, 11), 4)
    inputs = step_inputs(loop.scheduler.schedule())
    assert inputs.token_ids.tolist() == [1, 2, 3, 7, 8, 9, 10]
    assert inputs.position_ids.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert inputs.subsequence_begins.tolist() == [0, 3, 7]
    assert inputs.block_indices_begins.tolist() == [0, 1, 2]
    assert inputs.sampled_rows.tolist() == [2]
    assert inputs.max_context_len == 4
    assert [a.dtype for a in inputs[2:6]] == [np.int32] * 4


def test_a_salt_that_looks_like_a_hash_finds_nothing() -> None:
    """The salt stood as it was where a later block has the hash before it: the hash of somebody's prefix as a salt
    gave blocks of that prefix's continuation, computed for other positions."""
    blocks = BlockManager(8, BLOCK_SIZE)
    digest = b"sixteen bytes ok"  # as a hash would be, could one be found that is UTF-8
    prompt = tuple(range(1, 10))
    victim = RequestState.create(GenerationRequest(0, (50,) * BLOCK_SIZE + prompt, SamplingParams())).sequences[0]
    victim.block_hashes.append(digest)
    blocks.extend(victim, victim.num_tokens)
    victim.num_computed_tokens = victim.num_tokens
    blocks.commit(victim)
    salted = GenerationRequest(1, prompt, SamplingParams(), cache_salt=digest.decode())
    assert blocks.match_prefix(RequestState.create(salted).sequences[0]) == []


def test_the_head_of_the_queue_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that waited for room had its whole prompt hashed again at every step: 18 ms for 128k tokens."""
    loop = Loop("guaranteed_no_evict", num_blocks=10)
    prompt = tuple(range(1, 10))
    loop.add(prompt, 12)
    loop.step()
    waiting = loop.add((*prompt, 3), 30).sequences[0]
    loop.step()
    assert len(waiting.block_hashes) == 2
    loop.step()  # the running sequence has its fourth block now, and no more to hash for some steps
    monkeypatch.setattr(block_manager, "_digest", lambda content: pytest.fail("hashed again"))
    assert loop.scheduler.schedule()
    assert loop.scheduler.waiting == [waiting]


def test_siblings_do_not_hash_their_prompt_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 64 hashed the 1,024 blocks of 32k tokens by itself: the step waited for 140 ms."""
    digest, hashed = block_manager._digest, []

    def counting(content: bytes) -> bytes:
        hashed.append(content)
        return digest(content)

    monkeypatch.setattr(block_manager, "_digest", counting)
    loop = Loop("guaranteed_no_evict", num_blocks=32)
    prompt = tuple(range(1, 15))
    state = loop.add(prompt, 2, n=4)
    loop.run()
    assert len(hashed) == 1 + 3, "the salt, and each full block once"
    assert [s.token_ids for s in state.sequences] == [[*prompt, *greedy(prompt, 2)]] * 4


def test_a_waiting_request_holds_its_prompt_once() -> None:
    """Each of the n sequences was given its copy at submit: 80 ms and 32 MiB for 128 of 32k tokens, times the queue."""
    loop = Loop("guaranteed_no_evict", num_blocks=32)
    prompt = tuple(range(1, 10))
    request = loop.add(prompt, 2, n=3)
    assert [len(s.token_ids) for s in request.sequences] == [len(prompt), 0, 0]
    loop.run()
    assert [s.token_ids for s in request.sequences] == [[*prompt, *greedy(prompt, 2)]] * 3


def test_cancelling_many_that_wait_costs_no_more_than_adding_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cancellation put the whole queue in order anew: 0.29 s inside the loop for 2,048."""
    scheduler = Scheduler(BlockManager(32, BLOCK_SIZE), max_batch_size=4, max_num_tokens=10, policy="max_utilization")
    heapify = heapq.heapify
    sizes: list[int] = []

    def counting(heap: list[Any]) -> None:
        sizes.append(len(heap))
        heapify(heap)

    monkeypatch.setattr(heapq, "heapify", counting)
    states = [RequestState.create(GenerationRequest(i, (1, 2), SamplingParams())) for i in range(2048)]
    for state in states:
        scheduler.add(state)
    for state in states[:-3]:
        scheduler.finish(state.sequences[0])
    assert sum(sizes) <= 2048, "entries put in order"
    scheduler.check_invariants()
    assert scheduler.num_waiting_requests == 3
    assert [entry.sequence.request_state for entry in scheduler.schedule()] == states[-3:]


def test_who_was_cancelled_while_it_waited_is_not_kept_by_the_queue() -> None:
    """A gap keeps the whole request until everybody before it has run."""
    loop = Loop("guaranteed_no_evict", num_blocks=8)
    loop.add((1, 2, 3), 12)
    loop.step()
    guides = [failing((5,), 1) for _ in range(8)]
    waiting = [loop.add((5,) * 20, 2, guide=guide) for guide in guides]
    kept = [weakref.ref(guide) for guide in guides]
    for state in waiting[2:]:
        loop.cancel(state)
    del loop.requests[3:], waiting, state, guides
    gc.collect()
    assert 2 <= sum(guide() is not None for guide in kept) <= 4, "as many gaps as wait"
