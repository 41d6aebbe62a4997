"""One order for who runs and who gives way: priority with a cap and age, then fairness, then arrival."""

from __future__ import annotations

import itertools
import random

from briton.engine.order import MAX_REMEMBERED, CallerCounters, OrderRules, Rank

RULES = OrderRules(max_priority=10, aging_s=5.0)


def test_priority_is_capped_and_ages() -> None:
    assert RULES.level(2**31 - 1, 0, 10) == 10
    assert RULES.level(0, 4.9, 10) == 0
    assert RULES.level(0, 26, 10) == 5
    assert RULES.level(0, 1000, 10) == RULES.level(10, 0, 10)
    assert RULES.level(-3, 0, 10) == -3


def test_among_equals_waiting_decides_nothing() -> None:
    """Whoever had waited for one step of aging more than another went first for ever, whatever its caller had had."""
    assert RULES.level(0, 1000, 0) == RULES.level(0, 0, 0)


def test_one_callers_requests_age_in_a_fixed_order() -> None:
    """A queue keeps them in a heap: their order must not change while they wait."""
    random_ = random.Random(1)
    requests = [(random_.randint(-5, 20), random_.uniform(0, 100)) for _ in range(60)]
    for now in (100.0, 137.0, 500.0):
        for one, other in itertools.pairwise(requests):
            levels = [RULES.level(priority, now - arrived, 10) for priority, arrived in (one, other)]
            if abs(levels[0] - levels[1]) > 1 and max(levels) < 10:
                assert (levels[0] > levels[1]) == (RULES.age_key(*one) < RULES.age_key(*other))


def test_the_order_of_ranks() -> None:
    urgent, greedy, modest = Rank(-5, 900.0, 7, 0), Rank(0, 900.0, 1, 0), Rank(0, 10.0, 9, 0)
    assert sorted([greedy, modest, urgent]) == [urgent, modest, greedy]
    assert Rank(0, 10.0, 9, 0) < Rank(0, 10.0, 9, 1) < Rank(0, 10.0, 10, 0)


def test_a_new_caller_goes_before_one_that_had_much() -> None:
    counters = CallerCounters()
    counters.join("many", ())
    counters.charge("many", num_prompt_tokens=100, num_output_tokens=50)
    counters.join("one", {"many"})
    assert counters.served("one") == counters.served("many") == 200
    counters.charge("many", num_output_tokens=1)
    assert counters.served("one") < counters.served("many")


def test_a_caller_who_was_away_has_not_saved_up() -> None:
    counters = CallerCounters()
    for caller in ("a", "b"):
        counters.join(caller, {"a", "b"})
    counters.leave("b", {"a"})
    for _ in range(1000):
        counters.charge("a", num_output_tokens=10)
    counters.join("b", {"a"})
    assert counters.served("b") == counters.served("a")


def test_who_leaves_and_comes_back_at_once_gains_nothing() -> None:
    counters = CallerCounters()
    for caller in ("a", "b"):
        counters.join(caller, {"a", "b"})
        counters.charge(caller, num_output_tokens=5 if caller == "a" else 500)
    counters.leave("b", {"a"})
    counters.join("b", {"a"})
    assert counters.served("b") == 1010  # as it joined with what "a" had


def test_callers_that_are_gone_are_forgotten() -> None:
    counters = CallerCounters()
    for i in range(10_000):
        counters.join(f"caller {i}", ())
        counters.charge(f"caller {i}", num_output_tokens=i % 7)
        counters.leave(f"caller {i}", ())
    assert len(counters) == 0
    counters.join("a", ())
    for i in range(10_000):
        counters.join(f"caller {i}", {"a", f"caller {i}"})
        counters.charge("a", num_output_tokens=3)
        counters.leave(f"caller {i}", {"a"})
    assert len(counters) < 10


def test_callers_who_had_much_are_remembered_up_to_a_bound() -> None:
    counters = CallerCounters()
    counters.join("modest", ())
    for i in range(MAX_REMEMBERED + 100):
        counters.join(f"caller {i}", {"modest", f"caller {i}"})
        counters.charge(f"caller {i}", num_output_tokens=10 + i)
        counters.leave(f"caller {i}", {"modest"})
    assert len(counters) <= MAX_REMEMBERED + 1
    assert counters.served(f"caller {MAX_REMEMBERED + 99}") == 2.0 * (10 + MAX_REMEMBERED + 99)
