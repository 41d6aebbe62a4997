"""What the scheduler decides across requests and over time: reservations, order, fairness, the size of a step."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray

from briton.engine.order import OrderRules
from briton.engine.step_cost import StepCost, StepShape
from briton.engine.types import FinishReason, GenerationRequest, SamplingParams, TokenChunk
from briton.local import block_manager
from briton.local.plan import StepInputs, StepPlan
from briton.local.scheduler import Policies
from briton.local.sequence import RequestState
from briton.local.settings import SchedulerPolicy
from briton.local.step_loop import StepLoop
from tests.local.paged_model import EOS, VOCAB_SIZE, PagedModel, greedy, model_info


@dataclass
class Clock:
    """Time that a test makes."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Run:
    """A loop over a model whose outputs end at a position; counts who got what at which step."""

    policy: SchedulerPolicy = "guaranteed_no_evict"
    end_at: int | None = None  # tokens of prompt and output together
    limits: dict[str, int] = field(default_factory=dict)
    policies: Policies | None = None
    num_steps: int = 0
    ended_at: dict[int, int] = field(default_factory=dict)  # request -> step
    started_at: dict[int, int] = field(default_factory=dict)
    finals: dict[int, TokenChunk] = field(default_factory=dict)
    num_tokens: dict[int, int] = field(default_factory=dict)
    plans: list[StepPlan] = field(default_factory=list)

    def __post_init__(self) -> None:
        sizes = {"num_blocks": 1024, "block_size": 32, "max_seq_len": 8192, "max_batch_size": 64} | self.limits
        self.loop = StepLoop(model_info(**sizes), policy=self.policy, policies=self.policies)
        self.ids = 0

    def add(
        self,
        prompt: int,
        max_tokens: int = 200,
        *,
        has_limit: bool = True,
        priority: int = 0,
        caller: str = "",
        n: int = 1,
        submitted_at: float | None = None,
    ) -> int:
        self.ids += 1
        tokens = np.random.default_rng(self.ids).integers(1, VOCAB_SIZE, prompt)
        tokens[tokens == EOS] = 1
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0, n=n)
        request = GenerationRequest(
            self.ids, tuple(tokens.tolist()), sampling, priority=priority, caller=caller, has_limit=has_limit
        )
        state = RequestState.create(request)
        if submitted_at is not None:
            state.submitted_at = submitted_at
        self.loop.add(state)
        return self.ids

    def step(self) -> StepPlan:
        chunks: list[TokenChunk] = []
        plan = self.loop.step(self._forward, chunks)
        self.loop.check_invariants()
        self.num_steps += 1
        for chunk in chunks:
            self.started_at.setdefault(chunk.request_id, self.num_steps)
            self.num_tokens[chunk.request_id] = self.num_tokens.get(chunk.request_id, 0) + len(chunk.token_ids)
            if chunk.is_final:
                self.ended_at[chunk.request_id] = self.num_steps
                self.finals[chunk.request_id] = chunk
        return plan

    def run(self) -> int:
        """To the end; the number of steps."""
        while self.loop.has_work:
            assert self.step(), "work is left, and nothing was scheduled"
        return self.num_steps

    def _forward(self, inputs: StepInputs) -> NDArray[np.float32]:
        logits = np.zeros((len(inputs.sampled_rows), VOCAB_SIZE), np.float32)
        ends = inputs.position_ids[inputs.sampled_rows] + 2 == self.end_at
        logits[np.arange(len(ends)), np.where(ends, EOS, 1)] = 1
        return logits


def burst(policy: SchedulerPolicy) -> tuple[int, Run]:
    """128 requests of 200 + 200 tokens that set no limit, a cache of 32k tokens."""
    run = Run(policy, end_at=400, limits={"max_num_tokens": 2048})
    for _ in range(128):
        run.add(200, 8192 - 200, has_limit=False)
    return run.run(), run


def test_without_a_limit_as_much_runs_at_once_as_likely_fits() -> None:
    """An unset limit reserved the whole context: 4 of 64 ran, in 6,401 steps instead of 428."""
    steps, run = burst("guaranteed_no_evict")
    most, _ = burst("max_utilization")
    assert steps <= 1.3 * most
    assert {final.finish_reason for final in run.finals.values()} == {FinishReason.STOP}
    assert set(run.num_tokens.values()) == {200}


def test_outputs_longer_than_was_thought_still_end() -> None:
    run = Run(end_at=900, limits={"num_blocks": 128, "max_seq_len": 2048, "max_num_tokens": 512})
    for _ in range(12):
        run.add(20, 2000, has_limit=False)
    run.run()
    assert set(run.num_tokens.values()) == {880}
    assert run.loop.scheduler.num_preemptions > 0
    assert len(run.finals) == 12


def test_a_given_limit_is_a_promise_beside_those_without() -> None:
    run = Run(end_at=900, limits={"num_blocks": 128, "max_seq_len": 2048, "max_num_tokens": 512})
    promised = [run.add(20, 700) for _ in range(2)]
    for _ in range(10):
        run.add(20, 2000, has_limit=False)
    stopped: set[int] = set()
    while run.loop.has_work:
        before = {s.request.request_id for s in run.loop.scheduler.running}
        run.step()
        running = {s.request.request_id for s in run.loop.scheduler.running}
        stopped |= {request for request in before - running if request not in run.ended_at}
    assert run.loop.scheduler.num_preemptions > 0
    assert not stopped & set(promised), "a sequence whose limit was given was stopped"


@pytest.mark.parametrize("policy", ["guaranteed_no_evict", "max_utilization"])
@settings(max_examples=40, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(
            st.integers(1, 14),  # prompt
            st.integers(1, 14),  # max_tokens
            st.booleans(),  # has_limit
            st.sampled_from(["", "a", "b"]),  # caller
            st.integers(-2, 3),  # priority
            st.integers(1, 3),  # n
            st.integers(0, 5),  # steps before the next
        ),
        min_size=1,
        max_size=14,
    ),
    num_blocks=st.integers(10, 30),
)
def test_every_output_is_what_it_is_alone(
    policy: SchedulerPolicy, arrivals: list[tuple[int, int, bool, str, int, int, int]], num_blocks: int
) -> None:
    """Whoever gives way to whom, with and without limits, of several callers: books balance and no token differs."""
    clock = Clock()
    info = model_info(num_blocks, 4, max_batch_size=4, max_num_tokens=10, max_seq_len=min(64, num_blocks * 4))
    cost = StepCost()
    cost.observe(StepShape(4, 4, 40), 0.05)
    cost.observe(StepShape(10, 1, 60), 0.2)
    loop = StepLoop(info, policy=policy, policies=Policies(cost, clock=clock, target_inter_token_s=0.1))
    model = PagedModel(num_blocks, 4)
    outputs: dict[tuple[int, int], list[int]] = {}
    requests = []

    def step() -> None:
        chunks: list[TokenChunk] = []
        assert loop.step(model.forward, chunks)
        loop.check_invariants()
        clock.now += 3.0
        for chunk in chunks:
            outputs.setdefault((chunk.request_id, chunk.index), []).extend(chunk.token_ids)

    for i, (length, max_tokens, has_limit, caller, priority, n, pause) in enumerate(arrivals):
        prompt = tuple(1 + (7 * i + j) % (VOCAB_SIZE - 1) for j in range(length))
        prompt = tuple(token if token != EOS else 1 for token in prompt)
        request = GenerationRequest(
            i,
            prompt,
            SamplingParams(max_tokens=max_tokens, temperature=0, n=n),
            priority=priority,
            caller=caller,
            has_limit=has_limit,
        )
        requests.append(request)
        state = RequestState.create(request)
        state.submitted_at = clock.now
        loop.add(state)
        for _ in range(pause):
            if loop.has_work:
                step()
    while loop.has_work:
        step()
    for request in requests:
        alone = greedy(request.prompt_token_ids, request.sampling.max_tokens)
        for index in range(request.sampling.n):
            assert outputs[request.request_id, index] == alone
    assert loop.blocks.num_free_blocks == num_blocks


def test_the_least_important_gives_way() -> None:
    """The last admitted was stopped, who was the most important: it ended last of all, after four preemptions."""
    run = Run("max_utilization", end_at=420, limits={"num_blocks": 40, "max_batch_size": 16})
    for _ in range(8):
        run.add(20, 400, priority=0)
    for _ in range(40):
        run.step()
    important = run.add(20, 400, priority=10)
    run.run()
    assert run.loop.scheduler.num_preemptions > 0
    assert run.ended_at[important] <= 40 + 402, "it was stopped, or waited"


def test_priority_has_a_cap_and_waiting_counts() -> None:
    clock = Clock()
    policies = Policies(clock=clock, rules=OrderRules(max_priority=5, aging_s=10.0))
    run = Run(end_at=30, limits={"max_batch_size": 1}, policies=policies)
    first = run.add(10, 20, submitted_at=0.0)
    run.step()
    patient = run.add(10, 20, priority=0, submitted_at=0.0)
    clock.now = 100.0
    pushy = run.add(10, 20, priority=2**31 - 1, submitted_at=100.0)
    run.run()
    assert run.ended_at[first] < run.ended_at[patient] < run.ended_at[pushy]


def test_one_request_does_not_wait_behind_another_callers_thousand() -> None:
    run = Run(end_at=60, limits={"max_batch_size": 4})
    for _ in range(200):
        run.add(10, 50, caller="many")
    for _ in range(10):
        run.step()
    one = run.add(10, 50, caller="one")
    arrived = run.num_steps
    while one not in run.started_at:
        run.step()
    assert run.started_at[one] - arrived <= 52, "it had to wait for more than one place"


def test_callers_are_served_equally() -> None:
    run = Run(end_at=60, limits={"max_batch_size": 4})
    for _ in range(60):
        run.add(10, 50, caller="a")
    for _ in range(20):
        run.add(10, 50, caller="b")
    for _ in range(400):
        run.step()
    ended = sorted(run.ended_at, key=run.ended_at.__getitem__)[4:]  # those that ran before the second one came
    share = sum(request > 60 for request in ended) / len(ended)
    assert 0.4 < share < 0.6


def budgeted(tokens_a_second: float = 1500.0, target_s: float | None = 0.08) -> Policies:
    cost = StepCost()
    for size in (1, 2, 8, 64, 256, 512):
        cost.observe(StepShape(size, 1, size * 100), 0.006 + size / tokens_a_second)
    return Policies(cost, target_inter_token_s=target_s)


def computed(plan: StepPlan, request: int) -> int:
    return sum(entry.num_new_tokens for entry in plan if entry.sequence.request.request_id == request)


def test_a_prompt_beside_a_stream_comes_in_steps_that_keep_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step had 512 tokens whoever waited: a stream got a token every 650 ms beside a prompt of 6,000."""
    policies = budgeted()
    monkeypatch.setattr(policies.cost, "observe", lambda *_: None)  # these steps take no time
    run = Run(end_at=10_000, limits={"max_num_tokens": 512}, policies=policies)
    stream = run.add(20, 4000)
    run.step()
    assert computed(run.step(), stream) == 1
    prompt = run.add(6000, 100)
    sizes = []
    while prompt not in run.started_at:
        plan = run.step()
        assert computed(plan, stream) == 1
        sizes.append(computed(plan, prompt))
    assert sum(sizes) == 6000
    assert 60 <= max(sizes) <= 125  # 0.08 s at 1,500 tokens a second, and 6 ms


def test_alone_a_prompt_is_computed_in_full_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    policies = budgeted()
    monkeypatch.setattr(policies.cost, "observe", lambda *_: None)
    run = Run(end_at=10_000, limits={"max_num_tokens": 512}, policies=policies)
    prompt = run.add(2000, 1)
    assert [computed(run.step(), prompt) for _ in range(5)] == [512, 512, 512, 448, 16]


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65, 511, 512, 513, 700])
def test_a_prompt_that_is_found_ends_with_the_same_step_as_one_that_is_not(length: int) -> None:
    """Fewer tokens were computed the second time, by other kernels: in bf16 and int8 the answers differed."""
    run = Run(end_at=10_000, limits={"max_num_tokens": 512})
    last_steps = []
    for _ in range(2):
        run.ids = 0  # the same prompt
        request = run.add(length, 1)
        before = (0, 0)
        while run.loop.has_work:
            plan = run.step()
            before = (plan[0].num_new_tokens, computed(plan, request))
        last_steps.append(before)
    assert last_steps[0] == last_steps[1]
    assert run.loop.scheduler.num_cached_tokens == (length - 1) // 32 * 32


def test_waiting_siblings_and_preempted_sequences_are_counted() -> None:
    """n = 64 showed 4 running and nothing waiting: dashboards and autoscalers saw an idle queue."""
    run = Run(end_at=200, limits={"max_batch_size": 4})
    run.add(10, 150, n=64)
    for _ in range(3):
        run.step()
    assert len(run.loop.scheduler.running) == 4
    assert run.loop.scheduler.num_waiting_sequences == 60


def test_siblings_do_not_hash_the_prompt_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 siblings of a prompt of 32k tokens hashed it 63 times more: the step waited 140 ms."""
    hashed: list[bytes] = []
    digest = block_manager._digest

    def counting(content: bytes) -> bytes:
        hashed.append(content)
        return digest(content)

    monkeypatch.setattr(block_manager, "_digest", counting)
    run = Run(end_at=1100, limits={"max_num_tokens": 2048, "max_batch_size": 16})
    run.add(1000, 10, n=16)
    run.run()
    assert len(hashed) < 1000 // 32 + 16 * 3


def test_random_callers_lose_no_request() -> None:
    random_ = random.Random(5)
    run = Run("max_utilization", end_at=90, limits={"num_blocks": 30, "max_batch_size": 8, "max_seq_len": 256})
    for i in range(120):
        run.add(random_.randint(1, 60), 80, caller=f"caller {i % 7}", priority=random_.randint(0, 3))
        if random_.random() < 0.5:
            run.step()
    run.run()
    assert len(run.finals) == 120


def test_waiting_long_does_not_put_a_callers_thousand_before_anothers_one() -> None:
    """Aging came before fairness, and never ended: who came later than a flood waited for all of it."""
    clock = Clock()
    run = Run(end_at=60, limits={"max_batch_size": 4}, policies=Policies(clock=clock, rules=OrderRules(20, 10.0)))
    for _ in range(200):
        run.add(10, 50, caller="many", submitted_at=0.0)
    for _ in range(10):
        run.step()
    clock.now = 25.0
    one = run.add(10, 50, caller="one", submitted_at=25.0)
    arrived = run.num_steps
    while one not in run.started_at:
        run.step()
    assert run.started_at[one] - arrived <= 52


def test_callers_do_not_stop_each_other_in_turns() -> None:
    """What callers were served changed who gives way at every step: 99 preemptions instead of 15, and four times the
    tokens; and what was computed anew was charged again."""
    computed_by: dict[str, list[int]] = {}
    for name, callers in (("one", [""] * 8), ("eight", [f"caller {i}" for i in range(8)])):
        run = Run("max_utilization", end_at=520, limits={"num_blocks": 64, "max_batch_size": 8, "max_seq_len": 1024})
        for caller in callers:
            run.add(20, 500, caller=caller)
        total = 0
        while run.loop.has_work:
            total += sum(entry.num_new_tokens for entry in run.step())
        computed_by[name] = [run.loop.scheduler.num_preemptions, total]
        counters = run.loop.policies.counters
        assert len(counters) == 0
    assert computed_by["eight"][1] <= 1.5 * computed_by["one"][1], computed_by


def test_a_prompt_is_charged_once_however_often_it_is_computed() -> None:
    policies = Policies()
    run = Run("max_utilization", end_at=300, limits={"num_blocks": 20, "max_batch_size": 4}, policies=policies)
    charged: list[tuple[int, int]] = []
    charge = policies.counters.charge
    policies.counters.charge = lambda caller, p=0, o=0: (charged.append((p, o)), charge(caller, p, o))[1]  # type: ignore[method-assign, assignment, func-returns-value]
    for _ in range(4):
        run.add(100, 200)
    run.run()
    assert run.loop.scheduler.num_preemptions > 0
    assert sum(prompt for prompt, _ in charged) <= 4 * 100
    assert sum(output for _, output in charged) == 4 * 200


def test_fewer_tokens_a_step_than_slots() -> None:
    """Whoever runs gets a token each step: with 4 tokens and 8 slots, half of those that ran got none."""
    run = Run(end_at=60, limits={"max_batch_size": 8, "max_num_tokens": 4})
    for _ in range(8):
        run.add(1, 50)
    while run.loop.has_work:
        assert len(run.step()) == len(run.loop.scheduler.running) or run.ended_at
        assert len(run.loop.scheduler.running) <= 4
    assert set(run.num_tokens.values()) == {50}


def test_prompts_get_on_where_streams_alone_take_longer_than_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """56 streams that took 97 ms left 16 tokens a step to prompts: 8.8 s for one of 1,500."""
    cost = StepCost()
    for size in (1, 8, 64, 256, 512):
        cost.observe(StepShape(size, size, size * 100), 0.02 + size * 0.0014)
    monkeypatch.setattr(cost, "observe", lambda *_: None)
    policies = Policies(cost, target_inter_token_s=0.08)
    run = Run(end_at=10_000, limits={"max_num_tokens": 512}, policies=policies)
    for _ in range(56):
        run.add(4, 2000)
    while len(run.started_at) < 56:
        run.step()
    prompt = run.add(1500, 10)
    before = run.num_steps
    while prompt not in run.started_at:
        run.step()
    assert run.num_steps - before < 60
