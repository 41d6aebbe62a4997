"""Bad words: the same tokens as a comparison with every word, and a cost that does not grow with their length."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from briton.local.bad_words import BadWords

TOKENS = st.integers(0, 3)


@given(st.lists(st.lists(TOKENS, min_size=1, max_size=4), max_size=8), st.lists(TOKENS, max_size=12))
def test_the_same_as_comparing_every_word(words: list[list[int]], token_ids: list[int]) -> None:
    expected = {word[-1] for word in words if len(word) == 1 or token_ids[-(len(word) - 1) :] == word[:-1]}
    assert set(BadWords(words).forbidden(token_ids)) == expected


class CountingList(list[int]):
    """Counts the tokens that are copied out of it."""

    num_copied = 0

    def __getitem__(self, key):  # type: ignore[no-untyped-def]
        if isinstance(key, slice):
            self.num_copied += len(range(*key.indices(len(self))))
        return super().__getitem__(key)


def test_long_words_cost_nothing_until_their_end_is_near() -> None:
    """They were copied for every sampled token: a neighbour's token took 97.7 ms instead of 2.7."""
    words = BadWords([[7] * 1000 + [i] for i in range(4)])
    token_ids = CountingList([1, 2, 3] * 500)
    assert words.forbidden(token_ids) == []
    assert token_ids.num_copied == 0
