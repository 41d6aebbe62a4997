"""The cost curve: what it says between, before and beyond what was measured, and how noise is kept out of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from briton.local.lookahead.costs import CostCurve, CostPoint
from briton.local.padding import FIXED_SIZES, padded_size
from briton.local.probe import one_sequence

CURVE = CostCurve((CostPoint(1, 6.0, 0.001), CostPoint(8, 7.4, 0.002), CostPoint(16, 11.0, 0.004)), (1, 8), 4.0)


def line(num_tokens: int, num_context_tokens: int) -> float:
    """Milliseconds of a step of a machine without noise."""
    return 5 + num_tokens + num_context_tokens * num_tokens / 1000


def disturbed(times: Callable[[int, int], float], *calls: int) -> Callable[[int, int], float]:
    """The same, but these calls take ten times as long."""
    num_calls = 0

    def time_step(num_tokens: int, num_context_tokens: int) -> float:
        nonlocal num_calls
        num_calls += 1
        return times(num_tokens, num_context_tokens) * (10 if num_calls - 1 in calls else 1)

    return time_step


def test_points_and_between_them() -> None:
    assert CURVE.sizes == (1, 8, 16)
    assert [CURVE.cost(n) for n in (0, 1, 8, 16)] == [6.0, 6.0, 7.4, 11.0]
    assert CURVE.cost(12) == pytest.approx(9.2)
    assert CURVE.cost(8, 500) == pytest.approx(7.4 + 1.0)
    assert CURVE.cost(16, 1000, num_sequences=2) == pytest.approx(11.0 + 2.0)
    assert CURVE.cost(3, 1000, num_sequences=16) == pytest.approx(CURVE.cost(3) + 1.0)


def test_beyond_the_last_point_it_goes_on_as_in_its_last_half() -> None:
    """A slope between the last two points alone may be noise: 0 makes any number of tokens free."""
    assert CURVE.cost(24) == pytest.approx(11.0 + 3.6)
    sizes = (1, 8, 16, 24, 32)
    curve = CostCurve(tuple(CostPoint(n, s, 0.0) for n, s in zip(sizes, (6, 7, 11, 17, 17), strict=True)))
    assert curve.cost(64) == pytest.approx(17 + 32 * 6 / 16)
    assert CostCurve((CostPoint(8, 7.0, 0.0),)).cost(100) == 7.0


@given(st.integers(1, 60))
def test_what_each_token_reads_of_its_context_adds_up(num_tokens: int) -> None:
    steps = [CURVE.context_steps[min(i, len(CURVE.context_steps) - 1)] for i in range(num_tokens)]
    assert sum(steps) == pytest.approx(CURVE.context_cost(num_tokens))
    assert CURVE.cost(num_tokens, 300) == pytest.approx(CURVE.cost(num_tokens) + 300 * sum(steps))


def test_sizes_that_steps_are_padded_to() -> None:
    """Steps of 33 and of 65 tokens were reckoned as 48 and 96, the next sizes that are measured, and computed as 40 and
    72: tokens looked free that were not, and others were not sent for a price that nobody asked."""
    sizes = (1, 2, 8, 9, 16, 17, 33, 65, 100, 129)
    assert [CURVE.padded(n) for n in sizes] == [1, 8, 8, 16, 16, 24, 40, 72, 104, 129]
    for size in sizes[1:]:  # as drafts of one sequence
        assert padded_size(one_sequence(size), CURVE.fixed_sizes) == CURVE.padded(size)
    assert [CURVE.plain_size(n) for n in (1, 2, 5, 8, 9, 12, 16)] == [1, 2, 8, 8, 9, 12, 16]
    assert [CostCurve(CURVE.points).plain_size(n) for n in (1, 2, 8)] == [1, 2, 8]
    fixed = CostCurve(CURVE.points, tuple(FIXED_SIZES))
    assert [fixed.plain_size(n) for n in (9, 11, 12, 17)] == [9, 11, 16, 17]


def test_flat() -> None:
    curve = CostCurve.flat((1, 4, 64))
    assert curve.sizes == curve.fixed_sizes == (1, 4, 64)
    assert len({curve.cost(n, 1000) for n in range(1, 500)}) == 1


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(8, 7.0, 0.0), (8, 8.0, 0.0)],
        [(8, 7.0, 0.0), (1, 8.0, 0.0)],
        [(1, 7.0, 0.0), (8, 6.9, 0.0)],
        [(1, 7.0, 0.1), (8, 8.0, 0.0)],
        [(0, 7.0, 0.0)],
        [(1, 0.0, 0.0)],
        [(1, 1.0, -0.1)],
    ],
)
def test_points_that_are_no_curve(points: list[tuple[int, float, float]]) -> None:
    with pytest.raises(ValueError, match=r"point|tokens"):
        CostCurve(tuple(CostPoint(*point) for point in points))


def test_measured_as_it_is() -> None:
    sizes = (1, 8, 16, 32)
    curve = CostCurve.measure(line, sizes, fixed_sizes=[1, 8], switch_seconds=3.0)
    assert curve.sizes == sizes
    assert (curve.fixed_sizes, curve.switch_seconds) == ((1, 8), 3.0)
    for num_tokens in range(1, 80):
        assert curve.cost(num_tokens, 2000) == pytest.approx(line(num_tokens, 2000))


def test_without_context_where_there_is_no_room_for_it() -> None:
    contexts: set[int] = set()

    def time_step(num_tokens: int, num_context_tokens: int) -> float:
        contexts.add(num_context_tokens)
        return line(num_tokens, num_context_tokens)

    curve = CostCurve.measure(time_step, (1, 8), long_context=0)
    assert contexts == {0}
    assert curve.cost(8, 1000) == pytest.approx(line(8, 0))


@given(st.integers(0, 31))
def test_one_disturbed_step_changes_nothing(call: int) -> None:
    sizes = (1, 8, 16, 32)
    assert CostCurve.measure(disturbed(line, call), sizes) == CostCurve.measure(line, sizes)


def test_a_size_that_was_disturbed_all_the_time_costs_what_the_next_does() -> None:
    def time_step(num_tokens: int, num_context_tokens: int) -> float:
        return line(num_tokens, num_context_tokens) * (10 if num_tokens == 8 else 1)

    curve = CostCurve.measure(time_step, (1, 8, 16))
    assert curve.cost(8) == pytest.approx(line(16, 0))
    assert curve.cost(1) == pytest.approx(line(1, 0))
    assert curve.cost(16, 1024) == pytest.approx(line(16, 1024))


@given(st.lists(st.floats(1e-4, 10.0), min_size=8, max_size=400))
def test_more_tokens_never_look_cheaper(times: list[float]) -> None:
    calls = iter(times * 40)
    curve = CostCurve.measure(lambda *_: next(calls), (1, 8, 16, 24, 32))
    for fewer, more in pairwise(range(1, 80)):
        for context in (0, 100, 5000):
            assert 0 < curve.cost(fewer, context) <= curve.cost(more, context) * (1 + 1e-12)
    assert all(step >= -1e-15 for step in curve.context_steps)


def test_a_slow_machine_is_asked_less(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def time_step(num_tokens: int, num_context_tokens: int) -> float:
        nonlocal now
        now += 0.3
        return line(num_tokens, num_context_tokens)

    monkeypatch.setattr("briton.local.lookahead.costs.time.monotonic", lambda: now)
    assert CostCurve.measure(time_step, (1, 8, 16, 32), max_seconds=3.0).sizes == (1, 8, 16)
    assert CostCurve.measure(time_step, (1, 8, 16, 32), max_seconds=0.1).sizes == (1, 8)


def test_as_json_it_is_the_same_curve() -> None:
    values = json.loads(json.dumps(CURVE.as_dict()))
    points = tuple(CostPoint(**point) for point in values["points"])
    assert CostCurve(points, tuple(values["fixed_sizes"]), values["switch_seconds"]) == CURVE


def test_in_one_line() -> None:
    curve = CostCurve((CostPoint(1, 0.0062, 0.0), CostPoint(8, 0.00751, 0.0)), (1,), 0.004)
    assert str(curve) == "ms of a step by its tokens: 1: 6.2, 8: 7.5; another size: 4.0 more"
