"""The suffix automaton against a search of the whole text, and what it costs."""

from __future__ import annotations

import random
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from briton.local.lookahead import ngram
from briton.local.lookahead.ngram import Continuation, NgramIndex

BORDER = -1
tokens = st.integers(0, 2)
texts = st.lists(tokens, max_size=40)
texts_with_borders = st.lists(st.sampled_from([0, 1, 2, 0, 1, 2, BORDER]), max_size=40)


def index_of(text: Iterable[int]) -> NgramIndex:
    """Told token by token, as a sequence grows."""
    index = NgramIndex()
    for token_id in text:
        if token_id == BORDER:
            index.seal()
        else:
            index.extend((token_id,))
    return index


def ends(text: Sequence[int], string: Sequence[int]) -> list[int]:
    """Where it occurs in the text."""
    size = len(string)
    return [end for end in range(size, len(text) + 1) if list(text[end - size : end]) == list(string)]


def longest_match(text: list[int], after: list[int]) -> int:
    """Tokens of the longest suffix of text + after that occurs in the text (earlier, when nothing is after)."""
    whole = text + after
    for size in range(len(whole), 0, -1):
        string = whole[-size:]
        if BORDER not in string and any(end < len(whole) for end in ends(text, string)):
            return size
    return 0


def continuation(text: list[int], after: list[int], end: int, limit: int) -> list[int]:
    """What LZ77 copies from there."""
    whole = text + after
    for _ in range(limit):
        whole.append(whole[end])
        end += 1
    given = whole[len(whole) - limit :]
    return given[: given.index(BORDER)] if BORDER in given else given


@given(texts, st.lists(tokens, max_size=5), st.integers(1, 60))
def test_proposes_what_followed_the_longest_match(text: list[int], after: list[int], limit: int) -> None:
    index = index_of(text)
    proposal = index.propose(limit, after)
    size = longest_match(text, after)
    assert proposal.match_length == size
    if not after:
        assert index.match_length == size
    if size == 0:
        assert proposal.token_ids == []
        return
    places = [end for end in ends(text, (text + after)[-size:]) if end < len(text + after)]
    assert proposal.token_ids in [continuation(text, after, end, limit) for end in places]


@given(texts_with_borders, st.lists(tokens, max_size=5), st.integers(1, 60))
def test_nothing_crosses_a_border(text: list[int], after: list[int], limit: int) -> None:
    index = index_of(text)
    assert len(index) == sum(token_id != BORDER for token_id in text)
    assert index.match_length == longest_match(text, [])
    proposal = index.propose(limit, after)
    assert proposal.match_length <= longest_match(text, after)
    if proposal.token_ids:
        suffix = (text + after)[-proposal.match_length :]
        places = [end for end in ends(text, suffix) if end < len(text + after)]
        assert proposal.token_ids in [continuation(text, after, end, limit) for end in places]


@given(texts_with_borders)
def test_how_it_is_told_does_not_matter(text: list[int]) -> None:
    together = NgramIndex()
    start = 0
    for i, token_id in enumerate([*text, BORDER]):
        if token_id == BORDER:
            together.extend(text[start:i])
            start = i + 1
            if i < len(text):
                together.seal()
    one_by_one = index_of(text)
    for after in ([], [0], [1, 2]):
        assert together.propose(9, after) == one_by_one.propose(9, after)


@given(texts, st.lists(tokens, max_size=5))
def test_what_is_only_supposed_is_not_told(text: list[int], after: list[int]) -> None:
    index, untouched = index_of(text), index_of(text)
    index.propose(7, after)
    index.extend((1,))
    untouched.extend((1,))
    assert index.propose(7) == untouched.propose(7)


def test_a_loop_is_proposed_for_as_long_as_is_asked() -> None:
    index = index_of([9, 1, 2, 3, 1, 2])
    assert index.propose(8) == Continuation([3, 1, 2, 3, 1, 2, 3, 1], 2)
    assert index_of([5, 5]).propose(4) == Continuation([5, 5, 5, 5], 1)
    assert index_of([1, 2]).propose(5, [1, 2]) == Continuation([1, 2, 1, 2, 1], 2)


def test_the_latest_of_several_places_is_preferred() -> None:
    index = index_of([1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3])
    assert index.propose(2) == Continuation([8, 1], 3)
    index.extend([9, 1, 2, 3])
    assert index.propose(1) == Continuation([9], 3)
    assert index.propose(1, [4, 2, 3]) == Continuation([9], 2)


def test_a_border_after_the_latest_place_leaves_the_one_before() -> None:
    index = index_of([1, 2, 7, 1, 2, BORDER, 1, 2])
    assert index.propose(3) == Continuation([7, 1, 2], 2)
    assert index.propose(0) == Continuation([], 2)


def test_a_border_after_every_place_leaves_a_shorter_suffix() -> None:
    index = index_of([4, 2, 1, 2, BORDER, 1, 2])
    assert index.match_length == 2
    assert index.propose(3) == Continuation([1, 2], 1)
    assert index_of([1, 2, BORDER, 1, 2]).propose(3) == Continuation([], 0)


def test_borders_alone_are_no_text() -> None:
    index = index_of([BORDER, BORDER])
    assert (len(index), index.match_length) == (0, 0)
    assert index.propose(4) == index.propose(4, [3]) == Continuation([], 0)


def test_a_token_id_has_31_bits() -> None:
    index = NgramIndex()
    index.extend([2**31 - 1, 5, 2**31 - 1])
    assert index.propose(1) == Continuation([5], 1)
    with pytest.raises(OverflowError):
        index.extend([2**31])
    assert index.propose(1) == Continuation([5], 1)


class LineCounter:
    """Counts the lines that `ngram.py` executes: work, whatever the machine is doing besides."""

    def __init__(self) -> None:
        self.num_lines = 0

    def __enter__(self) -> LineCounter:
        self._outer = sys.gettrace()
        sys.settrace(self._enter_frame)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._outer)

    def _enter_frame(self, frame: FrameType, event: str, arg: object) -> Any:
        return self._line if frame.f_code.co_filename == ngram.__file__ else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        self.num_lines += 1
        return self._line


def fibonacci_word(size: int) -> list[int]:
    """The text with the most nested repeats."""
    shorter, word = [1], [0]
    while len(word) < size:
        shorter, word = word, word + shorter
    return word[:size]


def random_word(size: int) -> list[int]:
    """The text with the most states."""
    draw = random.Random(3)
    return [draw.randrange(2) for _ in range(size)]


def one_then_another(size: int) -> list[int]:
    """The text with the longest chain of suffix links to walk at once."""
    return [0] * (size // 2) + [1] * (size // 2)


@pytest.mark.parametrize("text_of", [fibonacci_word, random_word, one_then_another])
def test_a_token_costs_constant_work_in_a_text_of_128k(text_of: Callable[[int], list[int]]) -> None:
    per_token = []
    for size in (2**10, 2**17):
        index = NgramIndex()
        with LineCounter() as counter:
            index.extend(text_of(size))
        per_token.append(counter.num_lines / size)
    assert per_token[1] < 1.1 * per_token[0]


def test_a_token_costs_less_than_300_bytes() -> None:
    draw = random.Random(4)
    text = [draw.randrange(49_152) for _ in range(2**17)]
    tracemalloc.start()
    try:
        index = NgramIndex()
        index.extend(text)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 300 * len(index)
