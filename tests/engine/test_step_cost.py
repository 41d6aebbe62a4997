"""The learned cost of a step: near the truth of a known machine, robust, and not forgetful."""

from __future__ import annotations

import random

import pytest

from briton.engine.budget import MIN_CHUNK, prompt_tokens
from briton.engine.step_cost import StepCost, StepShape


def machine(shape: StepShape) -> float:
    """A CPU as measured on the example: seconds of a step."""
    return 6e-3 + 0.65e-3 * shape.num_tokens + 0.1e-3 * shape.num_rows + 60e-9 * shape.num_attended


def decode(batch: int, context: int) -> StepShape:
    return StepShape(batch, batch, batch * context)


def prefill(num_tokens: int, num_past: int = 0) -> StepShape:
    return StepShape(num_tokens, 1, num_tokens * num_past + num_tokens * (num_tokens + 1) // 2)


def learned(noise: float = 0.1, seed: int = 0) -> StepCost:
    cost, random_ = StepCost(), random.Random(seed)
    for _ in range(400):
        shape = (
            prefill(random_.choice((512, 300, 64)), random_.randrange(0, 4000, 512))
            if random_.random() < 0.2
            else decode(random_.randint(1, 32), random_.randint(10, 2000))
        )
        cost.observe(shape, machine(shape) * random_.uniform(1 - noise, 1 + noise))
    return cost


@pytest.mark.parametrize(
    "shape",
    [decode(1, 100), decode(16, 500), decode(64, 300), prefill(512), prefill(512, 5000), prefill(2048), prefill(20)],
    ids=str,
)
def test_near_the_truth_also_beyond_what_was_seen(shape: StepShape) -> None:
    expected = learned().expected(shape)
    assert expected is not None
    assert 0.75 < expected / machine(shape) < 1.33


def test_nothing_is_expected_before_the_first_step() -> None:
    assert StepCost().expected(decode(1, 1)) is None
    assert StepCost().tokens_within(0.1, decode(1, 1), 0, 512) == 512


def test_one_step_makes_a_guess() -> None:
    cost = StepCost()
    cost.observe(prefill(32), 0.03)
    assert cost.expected(prefill(32)) == pytest.approx(0.03)
    assert cost.expected(prefill(320)) > 0.03  # type: ignore[operator]


def test_a_busy_moment_counts_for_little_and_a_lasting_change_soon() -> None:
    cost, shape = learned(), decode(8, 200)
    before = cost.expected(shape)
    assert before is not None
    cost.observe(shape, 100 * before)
    after = cost.expected(shape)
    assert after is not None
    assert after < 1.5 * before
    for _ in range(200):
        cost.observe(shape, 2 * before)
    slower = cost.expected(shape)
    assert slower is not None
    assert 1.7 < slower / before < 2.3


def test_hours_of_decoding_do_not_make_it_forget_prompts() -> None:
    cost = learned(noise=0)
    before = cost.expected(prefill(512, 1000))
    for i in range(20_000):
        cost.observe(decode(1 + i % 8, 300), machine(decode(1 + i % 8, 300)))
    assert cost.expected(prefill(512, 1000)) == pytest.approx(before, rel=0.1)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_time_teaches_nothing(seconds: float) -> None:
    cost = StepCost()
    cost.observe(decode(1, 1), seconds)
    cost.observe(StepShape(0), 1.0)
    assert cost.num_steps == 0


def test_more_never_costs_less() -> None:
    cost = StepCost()
    for size, seconds in ((1, 0.010), (8, 0.009), (64, 0.008)):  # noise, in the wrong direction
        cost.observe(prefill(size), seconds)
    costs = [cost.expected(StepShape(size, 1, size * size)) for size in (100, 200, 400)]
    assert costs == sorted(costs)  # type: ignore[type-var]


def test_the_budget_keeps_the_time_between_tokens() -> None:
    cost, running = learned(noise=0), decode(4, 500)
    for num_past in (0, 2000, 5000):
        budget = prompt_tokens(cost, running, num_past, target_s=0.08, most=508)
        chunk = StepShape(4 + budget, 5, running.num_attended + budget * num_past + budget * (budget + 1) // 2)
        assert MIN_CHUNK < budget < 508
        assert machine(chunk) < 0.08 * 1.3


def test_the_budget_is_all_there_is_where_nobody_waits_for_a_token() -> None:
    cost = learned(noise=0)
    assert prompt_tokens(cost, StepShape(0, 0, 0), 0, target_s=0.08, most=512) == 512
    assert prompt_tokens(cost, decode(4, 500), 0, target_s=None, most=512) == 512


def test_a_prompt_gets_on_however_slow_the_machine() -> None:
    cost = StepCost()
    cost.observe(decode(4, 100), 3.0)
    assert prompt_tokens(cost, decode(4, 100), 0, target_s=0.08, most=512) == MIN_CHUNK
    assert prompt_tokens(cost, decode(4, 100), 0, target_s=0.08, most=3) == 3
