"""Rates of acceptance: what they converge to, how soon they follow, and what they are before anything was seen."""

from __future__ import annotations

import math
import random
import timeit
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from briton.local.lookahead.acceptance import AcceptanceRates

BUCKETS = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 8), (9, 12), (13, 16), (17, 1000)]
observations = st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=60)


def told(rates: AcceptanceRates, match_length: int, *hits: bool) -> AcceptanceRates:
    """The same, after these observations."""
    for hit in hits:
        rates.observe(match_length, hit)
    return rates


def coin(rate: float, count: int, seed: int = 1) -> list[bool]:
    """Hits at this rate."""
    draw = random.Random(seed)
    return [draw.random() < rate for _ in range(count)]


@given(observations, observations, st.integers(0, 50), st.integers(0, 40))
def test_rates_are_probabilities_and_survival_their_product(
    others: list[tuple[int, bool]], own: list[tuple[int, bool]], match_length: int, num_tokens: int
) -> None:
    engine = AcceptanceRates()
    other, rates = AcceptanceRates(engine), AcceptanceRates(engine)
    for observed in others:
        other.observe(*observed)
    for observed in own:
        rates.observe(*observed)
    for table in (engine, rates):
        assert all(0 < table.rate(length) < 1 for length in range(60))
        survival = table.survival(match_length, num_tokens)
        product = [math.prod(table.rate(match_length + j) for j in range(k + 1)) for k in range(num_tokens)]
        assert survival == pytest.approx(product, rel=1e-12)
        assert all(longer <= shorter for shorter, longer in pairwise(survival))


def test_nothing_seen_a_longer_match_is_more_likely_right() -> None:
    rates = AcceptanceRates(AcceptanceRates())
    by_bucket = [rates.rate(first) for first, _ in BUCKETS]
    assert by_bucket == sorted(by_bucket)
    assert by_bucket[0] < 0.5 < 0.9 < by_bucket[-1]
    assert [rates.rate(last) for _, last in BUCKETS] == by_bucket
    assert rates.rate(0) == rates.rate(1)
    assert rates.survival(4, 0) == []


@pytest.mark.parametrize("match_length", [1, 6, 100])
@pytest.mark.parametrize("rate", [0.02, 0.5, 0.98])
def test_converges_to_the_true_rate(match_length: int, rate: float) -> None:
    engine = AcceptanceRates()
    rates = told(AcceptanceRates(engine), match_length, *coin(rate, 4000))
    assert engine.rate(match_length) == pytest.approx(rate, abs=0.03)
    assert rates.rate(match_length) == pytest.approx(rate, abs=0.16)  # 2.5 times what so short a memory varies by


@pytest.mark.parametrize(("before", "after"), [(0.95, 0.05), (0.05, 0.95)])
def test_a_sequence_follows_a_change_within_30_observations(before: float, after: float) -> None:
    rated = []
    for seed in range(20):
        rates = told(AcceptanceRates(AcceptanceRates()), 3, *coin(before, 200, seed))
        rated.append([rates.rate(3), *(told(rates, 3, *coin(after, 30, seed)).rate(3) for _ in range(3))])
    at_first, after_30, _, after_90 = (sum(rates) / len(rates) for rates in zip(*rated, strict=True))
    assert at_first == pytest.approx(before, abs=0.05)
    assert abs(after_30 - after) < abs(after_30 - before)
    assert after_90 == pytest.approx(after, abs=0.2)


def test_the_engine_forgets_more_slowly() -> None:
    engine = AcceptanceRates()
    rates = told(AcceptanceRates(engine), 1, *coin(0.9, 500), *[False] * 50)
    assert engine.rate(1) > 0.75 > 0.4 > rates.rate(1)


def test_a_new_sequence_starts_from_what_others_have_seen_and_leaves_it_soon() -> None:
    engine = AcceptanceRates()
    told(AcceptanceRates(engine), 2, *[True] * 200)
    other = AcceptanceRates(engine)
    assert other.rate(2) == pytest.approx(engine.rate(2), rel=1e-12)
    assert engine.rate(2) > 0.9
    told(other, 2, *[False] * 8)
    assert other.rate(2) == pytest.approx(engine.rate(2) / 2, abs=0.05)  # as many observations as the prior counts for


def test_what_others_see_later_is_leant_on_too() -> None:
    engine = AcceptanceRates()
    rates = told(AcceptanceRates(engine), 2, True)
    before = rates.rate(2)
    told(AcceptanceRates(engine), 2, *[False] * 300)
    assert rates.rate(2) < before / 2


@given(observations.filter(bool), st.integers(1, 17))
def test_a_longer_match_is_not_worse_for_lack_of_data(observed: list[tuple[int, bool]], match_length: int) -> None:
    rates = AcceptanceRates()
    for length, hit in observed:
        if length <= match_length:
            rates.observe(length, hit)
    unseen = [last for first, last in BUCKETS if first > match_length]
    assert all(rates.rate(length) >= rates.rate(match_length) for length in unseen)


@pytest.mark.parametrize("match_length", [3, 8, 16])
def test_what_is_right_after_short_matches_is_after_longer_ones(match_length: int) -> None:
    rates = told(AcceptanceRates(AcceptanceRates()), match_length, *[True] * 40)
    before = AcceptanceRates().rate(17)
    assert rates.rate(17) == pytest.approx(rates.rate(match_length))
    assert rates.rate(17) > before


def test_a_longer_match_is_worse_when_it_was_seen_to_be() -> None:
    rates = told(told(AcceptanceRates(), 4, *coin(0.9, 300)), 20, *coin(0.2, 300))
    assert rates.rate(20) < 0.3 < 0.8 < rates.rate(4) <= rates.rate(16)


def test_a_longer_match_is_worse_where_the_engine_has_seen_it_to_be() -> None:
    engine = AcceptanceRates()
    told(told(engine, 4, *coin(0.9, 300)), 6, *coin(0.1, 300))
    rates = told(AcceptanceRates(engine), 4, *[True] * 50)
    assert rates.rate(6) == pytest.approx(engine.rate(6), rel=1e-12)
    assert engine.rate(6) < 0.2


def test_one_miss_in_a_long_match_shortens_the_next_draft_and_does_not_end_it() -> None:
    rates = told(AcceptanceRates(AcceptanceRates()), 30, *[True] * 40)
    before = sum(rates.survival(30, 16))
    told(rates, 30, False)
    assert 0.5 * before < sum(rates.survival(30, 16)) < 0.9 * before


@pytest.mark.timing
def test_it_costs_microseconds() -> None:
    rates = AcceptanceRates(AcceptanceRates())

    def microseconds(statement: str) -> float:
        return min(timeit.repeat(statement, globals={"rates": rates}, number=100, repeat=50)) * 1e4

    assert microseconds("rates.observe(5, True)") < 2  # 0.3 on the machine of benchmarks/LOG.md
    assert microseconds("rates.observe(5, True); rates.survival(3, 31)") < 30  # 5, of which 2 the survival
