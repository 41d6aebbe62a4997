"""The n-gram pool: what it holds, what it forgets."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from briton.config.lookahead import LookaheadConfig
from briton.local.lookahead.pool import NgramPool


def pool_of(ngram_size: int, verification_set_size: int, max_keys: int = 100) -> NgramPool:
    return NgramPool(LookaheadConfig(5, ngram_size, verification_set_size), max_keys)


def test_the_most_recent_come_first() -> None:
    pool = pool_of(3, 4)
    for ngram in ([1, 2, 3], [1, 4, 5], [2, 6, 7], [1, 8, 9]):
        pool.add(ngram)
    assert pool.following(1, 4) == [(8, 9), (4, 5), (2, 3)]
    assert pool.following(1, 2) == [(8, 9), (4, 5)]
    assert pool.following(1, 0) == pool.following(3, 4) == []


def test_the_oldest_of_a_key_gives_way_and_a_repeat_is_new_again() -> None:
    pool = pool_of(2, 2)
    for ngram in ([1, 2], [1, 3], [1, 2], [1, 4]):
        pool.add(ngram)
    assert pool.following(1, 9) == [(4,), (2,)]


def test_the_least_recently_used_key_gives_way() -> None:
    pool = pool_of(2, 2, max_keys=2)
    pool.add([1, 10])
    pool.add([2, 20])
    pool.following(1, 1)
    pool.add([3, 30])
    assert (pool.following(1, 1), pool.following(2, 1), pool.following(3, 1)) == ([(10,)], [], [(30,)])
    pool.add([1, 11])
    pool.add([4, 40])
    assert (pool.following(1, 2), pool.following(3, 1)) == ([(11,), (10,)], [])


def test_a_text_told_in_parts_is_one_text() -> None:
    whole, parts = pool_of(4, 3), pool_of(4, 3)
    text = [1, 2, 3, 1, 2, 4, 1, 2]
    whole.seed(text)
    for part in (text[:1], text[1:3], [], text[3:]):
        parts.seed(part)
    for pool in (whole, parts):
        assert pool.following(1, 3) == [(2, 4, 1), (2, 3, 1)]
        assert len(pool) == 5


@pytest.mark.parametrize(("ngram_size", "verification_set_size"), [(1, 3), (4, 0)])
def test_a_pool_nobody_asks_holds_nothing(ngram_size: int, verification_set_size: int) -> None:
    pool = pool_of(ngram_size, verification_set_size)
    pool.seed(range(20))
    pool.add(range(ngram_size))
    assert len(pool) == 0
    assert pool.following(0, 3) == []


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="an n-gram of 2 tokens in a pool of 3-grams"):
        pool_of(3, 3).add([1, 2])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 3))), st.integers(1, 4))
def test_bounds_hold_and_what_is_left_is_the_newest(ngrams: list[tuple[int, int, int]], max_keys: int) -> None:
    pool = pool_of(3, 2, max_keys)
    expected: OrderedDict[int, list[tuple[int, int]]] = OrderedDict()
    for key, *rest in ngrams:
        pool.add([key, *rest])
        continuation = (rest[0], rest[1])
        others = [known for known in expected.pop(key, []) if known != continuation]
        expected[key] = [continuation, *others][:2]
        if len(expected) > max_keys:
            expected.popitem(last=False)
    assert len(pool) == sum(map(len, expected.values()))
    for key, known in expected.items():
        assert pool.following(key, 2) == known
