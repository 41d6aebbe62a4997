"""The n-gram pool of lookahead decoding (Fu, Bailis, Stoica, Zhang 2024): what was seen to follow a token.

`lookaheadPoolManager` in TensorRT-LLM, but bounded in its keys too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from briton.config.lookahead import LookaheadConfig

MAX_KEYS = 4096  # first tokens known at once; with five 5-grams of each, some 2 MB


class NgramPool:
    """N-grams by their first token, at most G of each. The least recently used give way.

    A token is used when an n-gram of it is added or asked for, an n-gram when it is added.
    """

    def __init__(self, config: LookaheadConfig, max_keys: int = MAX_KEYS) -> None:
        self._ngram_size = config.ngram_size
        self._max_ngrams = config.verification_set_size if config.ngram_size > 1 else 0
        self._max_keys = max_keys
        self._continuations: OrderedDict[int, list[tuple[int, ...]]] = OrderedDict()  # most recently used last
        self._told: list[int] = []  # the end of the text, shorter than an n-gram

    def __len__(self) -> int:
        """N-grams held."""
        return sum(len(known) for known in self._continuations.values())

    def add(self, ngram: Sequence[int]) -> None:
        """Hold these N tokens, or renew them. Raises ValueError when they are not N."""
        if len(ngram) != self._ngram_size:
            raise ValueError(f"an n-gram of {len(ngram)} tokens in a pool of {self._ngram_size}-grams")
        if self._max_ngrams == 0:
            return
        continuation = tuple(ngram[1:])
        known = self._continuations.get(ngram[0])
        if known is None:
            self._continuations[ngram[0]] = [continuation]
            if len(self._continuations) > self._max_keys:
                self._continuations.popitem(last=False)
            return
        self._continuations.move_to_end(ngram[0])
        if continuation in known:
            known.remove(continuation)
        elif len(known) == self._max_ngrams:
            del known[0]
        known.append(continuation)

    def seed(self, token_ids: Iterable[int]) -> None:
        """Add the n-grams of a text: the prompt, whole or in parts, then the output as it comes. Some 1 us a token."""
        if self._max_ngrams == 0:
            return
        text = [*self._told, *token_ids]
        for ngram in zip(*(text[i:] for i in range(self._ngram_size)), strict=False):
            self.add(ngram)
        self._told = text[max(0, len(text) - self._ngram_size + 1) :]

    def following(self, token_id: int, count: int) -> list[tuple[int, ...]]:
        """At most `count` continuations of this token, N-1 tokens each, the most recent first."""
        known = self._continuations.get(token_id)
        if known is None or count < 1:
            return []
        self._continuations.move_to_end(token_id)
        return known[: -count - 1 : -1]
