"""Scheduler and block manager under random traffic: the books balance after each step, and every output is what it
is alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from briton.engine.types import GenerationRequest, SamplingParams
from briton.local import block_manager
from briton.local.block_manager import BlockManager
from briton.local.lookahead.draft import ROOT, Draft
from briton.local.output import OutputProcessor
from briton.local.plan import ScheduledSequence, step_inputs
from briton.local.sampler import Sampler, StepLogits
from briton.local.scheduler import Scheduler
from briton.local.sequence import RequestState
from briton.local.settings import SchedulerPolicy
from briton.local.verification import verify
from tests.local.paged_model import EOS, VOCAB_SIZE, PagedModel, greedy

BLOCK_SIZE = 4
MAX_NUM_TOKENS = 10
PREFIXES = [tuple(range(1, 13)), tuple(range(20, 30)), ()]


@dataclass
class Loop:
    """The executor's loop without its thread."""

    policy: SchedulerPolicy
    num_blocks: int
    chunked: bool = True
    drafts: Callable[[ScheduledSequence], Draft | None] | None = None
    num_accepted: int = 0
    outputs: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    requests: list[RequestState] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(
            BlockManager(self.num_blocks, BLOCK_SIZE),
            max_batch_size=4,
            max_num_tokens=MAX_NUM_TOKENS,
            policy=self.policy,
            enable_chunked_context=self.chunked,
        )
        self.model = PagedModel(self.num_blocks, BLOCK_SIZE)
        self.sampler = Sampler(VOCAB_SIZE, [EOS])
        self.output = OutputProcessor([EOS])

    def add(
        self, prompt: tuple[int, ...], max_tokens: int, n: int = 1, priority: int = 0, salt: str = ""
    ) -> RequestState:
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0, n=n)
        state = RequestState.create(
            GenerationRequest(len(self.requests), prompt, sampling, priority=priority, cache_salt=salt)
        )
        self.requests.append(state)
        self.scheduler.add(state)
        return state

    def step(self) -> bool:
        plan = self.scheduler.schedule()
        self.scheduler.check_invariants()
        if not plan:
            assert not self.scheduler.has_work, "work is left, and nothing was scheduled"
            return False
        if self.drafts is not None:
            plan = self.scheduler.attach_drafts(plan, [self.drafts(entry) for entry in plan])
            self.scheduler.check_invariants()
        assert sum(entry.num_new_tokens for entry in plan) <= MAX_NUM_TOKENS
        assert all(entry.num_new_tokens > 0 for entry in plan)
        logits = StepLogits(self.model.forward(step_inputs(plan)))
        row = 0
        for entry in plan:
            sequence, state = entry.sequence, entry.sequence.request_state
            if not entry.samples:
                self.scheduler.update(sequence, entry.num_new_tokens)
                continue
            verified = verify(entry, logits, row, self.sampler, self.output)
            row += entry.num_rows
            assert verified.error is None
            self.scheduler.update(sequence, entry.num_new_tokens + verified.num_in_place)
            self.num_accepted += len(verified.accepted)
            if state.first_token_at is None:
                state.first_token_at = 0.0
                self.scheduler.start_siblings(state)
            got = self.outputs.setdefault((state.request.request_id, sequence.index), [])
            got += [token.token_id for token in verified.sampled]
            if sequence.finish_reason is not None:
                self.scheduler.finish(sequence)
            else:
                assert len(sequence.block_table) == self.scheduler.blocks.blocks_for(sequence.num_computed_tokens)
        assert row == len(logits)
        self.scheduler.check_invariants()
        return True

    def cancel(self, state: RequestState) -> None:
        for sequence in state.sequences:
            self.scheduler.finish(sequence)
        self.scheduler.check_invariants()


arrivals = st.lists(
    st.tuples(
        st.sampled_from(PREFIXES),
        st.lists(st.integers(1, VOCAB_SIZE - 1), min_size=1, max_size=14),
        st.integers(1, 12),  # max_tokens
        st.integers(1, 3),  # n
        st.integers(0, 2),  # priority
        st.integers(0, 6),  # steps before the next arrives
        st.one_of(st.none(), st.integers(0, 8)),  # cancelled after so many arrivals
    ),
    min_size=1,
    max_size=14,
)


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
@pytest.mark.parametrize("drafted", [False, True])
@settings(max_examples=60, deadline=None)
@given(arrivals=arrivals, num_blocks=st.integers(10, 40), seed=st.integers(0, 1000))
def test_random_traffic(
    policy: SchedulerPolicy, drafted: bool, arrivals: list[tuple], num_blocks: int, seed: int
) -> None:
    loop = Loop(policy, num_blocks, drafts=random_drafts(seed) if drafted else None)
    cancelled: set[int] = set()
    for prefix, rest, max_tokens, n, priority, steps, cancel in arrivals:
        loop.add(prefix + tuple(rest), max_tokens, n, priority)
        for _ in range(steps):
            loop.step()
        if cancel is not None and cancel < len(loop.requests):
            cancelled.add(cancel)
            loop.cancel(loop.requests[cancel])
    for _ in range(2000):
        if not loop.step():
            break
    else:
        pytest.fail("the traffic never drained")
    assert loop.scheduler.blocks.num_free_blocks == num_blocks
    for state in loop.requests:
        expected = greedy(state.request.prompt_token_ids, state.request.sampling.max_tokens)
        for sequence in state.sequences:
            got = loop.outputs.get((state.request.request_id, sequence.index), [])
            if state.request.request_id in cancelled:
                assert got == expected[: len(got)]
            else:
                assert got == expected
    if policy == "guaranteed_no_evict":
        assert loop.scheduler.num_preemptions == 0


def test_drafts_save_steps_and_their_blocks_go_back() -> None:
    loop = Loop("guaranteed_no_evict", num_blocks=32)
    loop.drafts = lambda entry: Draft.chain(greedy(tuple(entry.sequence.token_ids), 5, stop=None))
    loop.add((1, 2, 3), 12)
    steps = 0
    while loop.step():
        steps += 1
    assert loop.outputs[(0, 0)] == greedy((1, 2, 3), 12)
    assert steps == 2
    assert loop.num_accepted == 10


def test_a_right_branch_behind_a_wrong_one_is_computed_again() -> None:
    loop = Loop("guaranteed_no_evict", num_blocks=32)

    def draft(entry: ScheduledSequence) -> Draft:
        right = greedy(tuple(entry.sequence.token_ids), 3, stop=None)
        return Draft.trie([[(right[0] + 1) % VOCAB_SIZE, 5, 5], right])

    loop.drafts = draft
    sequence = loop.add((1, 2, 3), 12).sequences[0]
    loop.step()
    assert len(loop.outputs[(0, 0)]) == 4
    assert sequence.num_computed_tokens == 3, "the accepted tokens lie behind the wrong branch"
    while loop.step():
        pass
    assert loop.outputs[(0, 0)] == greedy((1, 2, 3), 12)


def test_max_utilization_preempts_and_loses_nothing() -> None:
    loop = Loop("max_utilization", num_blocks=6)
    requests = [loop.add(tuple(range(i, i + 8)), 12) for i in (1, 20, 40)]
    while loop.step():
        pass
    assert loop.scheduler.num_preemptions > 0
    for state in requests:
        prompt = state.request.prompt_token_ids
        assert loop.outputs[(state.request.request_id, 0)] == greedy(prompt, 12)


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
        while loop.step():
            pass
    assert [r.cached_tokens for r in requests] == [0, 8, 0, 8]


def test_siblings_share_the_blocks_of_the_prompt() -> None:
    loop = Loop("guaranteed_no_evict", num_blocks=32)
    request = loop.add(tuple(range(1, 11)), 5, n=3)
    loop.step()
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
        while loop.step():
            pass
    loop.add(tuple(range(40, 56)), 1)  # takes 5 of 8 blocks: those never used, then the oldest
    while loop.step():
        pass
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
    assert inputs.token_ids.tolist() == [1, 2, 3, 7, 8, 9, 10, 11]
    assert inputs.position_ids.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]
    assert inputs.subsequence_begins.tolist() == [0, 3, 8]
    assert inputs.block_indices_begins.tolist() == [0, 1, 3]
    assert inputs.sampled_rows.tolist() == [2, 7]
    assert inputs.max_context_len == 5
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


def test_a_waiting_request_holds_its_prompt_once() -> None:
    """Each of the n sequences was given its copy at submit: 80 ms and 32 MiB for 128 of 32k tokens, times the queue."""
    loop = Loop("guaranteed_no_evict", num_blocks=32)
    prompt = tuple(range(1, 10))
    request = loop.add(prompt, 2, n=3)
    assert [len(s.token_ids) for s in request.sequences] == [len(prompt), 0, 0]
    while loop.step():
        pass
    assert [s.token_ids for s in request.sequences] == [[*prompt, *greedy(prompt, 2)]] * 3
