"""The Guide protocol over llguidance's matcher: schemas, regexes and choices are all one to it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray
from typing_extensions import Self

from briton.guidance.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


class GrammarMemory:
    """What all copies of a guide share: it lives as long as any of them."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes  # an estimate: the library does not tell


class GrammarGuide:
    """A Guide over an LLMatcher.

    Where bytes are forced, the mask holds their canonical token alone, while `advance` takes whatever the grammar
    allows. LLMatcher never raises and, once in error, offers the end: so it is asked after every mask, and a failed one
    gives an all-zero row. Stop ids are kept out of it: older releases know but one.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary, memory: GrammarMemory) -> None:
        self._matcher = matcher
        self.vocabulary = vocabulary
        self.memory = memory
        self._num_consumed = 0  # tokens, without stop ids
        self._num_stops = 0  # stop ids consumed, all of them after the rest

    @property
    def nbytes(self) -> int:
        """Memory held by what all copies share, in bytes."""
        return self.memory.nbytes

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        """Write the mask of the next token into `row`; all zeros when the parser has failed."""
        if self._num_stops:
            row[:] = 0
            self._allow_stops(row)
            return
        self._matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if self._matcher.is_error():
            logger.error("a guide failed: %s", first_line(self._matcher.get_error()))
            row[:] = 0
            return
        end = self.vocabulary.stop_token_ids[0]
        if len(self.vocabulary.stop_token_ids) > 1 and int(row[end >> 5]) >> (end & 31) & 1:
            self._allow_stops(row)

    def advance(self, token_ids: Sequence[int]) -> bool:
        """Consume tokens, or none of them when one is not allowed.

        A parser that reaches a limit of its own has taken them: the next mask is empty, which ends the request.
        """
        num_consumed = num_stops = 0
        was_sound = not self._matcher.is_error()
        for token_id in token_ids:
            if token_id in self.vocabulary.stops:
                if not (self._num_stops or num_stops or self._may_end()):
                    break
                num_stops += 1
            elif self._num_stops or num_stops or not self._consume(token_id):
                break
            else:
                num_consumed += 1
        if was_sound and self._matcher.is_error():
            return True
        if num_consumed + num_stops < len(token_ids):
            if num_consumed:
                self._matcher.rollback(num_consumed)
            return False
        self._num_consumed += num_consumed
        self._num_stops += num_stops
        return True

    def rollback(self, n: int) -> None:
        """Undo the last n consumed tokens. Raises ValueError when there were fewer."""
        if not 0 <= n <= self._num_consumed + self._num_stops:
            raise ValueError(f"cannot roll back {n} of {self._num_consumed + self._num_stops} tokens")
        num_stops = min(n, self._num_stops)
        self._num_stops -= num_stops
        self._num_consumed -= n - num_stops
        if n > num_stops:
            self._matcher.rollback(n - num_stops)

    def is_terminated(self) -> bool:
        """True when nothing but the end may follow, or a stop id was consumed."""
        return self._num_stops > 0 or (self._matcher.is_stopped() and not self._matcher.is_error())

    def forced_tokens(self) -> list[int]:
        """Tokens that must come next, in canonical tokenization; empty where there is a choice."""
        if self._num_stops or self._matcher.is_stopped():
            return []
        forced: list[int] = self._matcher.compute_ff_tokens()
        return forced[: self._matcher.validate_tokens(forced)] if forced else forced

    def copy(self) -> Self:
        """An independent guide in the same state."""
        copy = type(self)(self._matcher.deep_copy(), self.vocabulary, self.memory)
        copy._num_consumed, copy._num_stops = self._num_consumed, self._num_stops
        return copy

    def is_healthy(self) -> bool:
        """False when nothing may follow. All copies share one lexer, whose states have a limit: it can wear out."""
        matcher = self._matcher.deep_copy()
        row = np.zeros(self.vocabulary.num_words, np.int32)
        matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        return not matcher.is_error() and bool(row.any())

    def probe(self, num_tokens: int) -> str:
        """Follow the shortest allowed tokens from here, which open objects and strings; why that fails, or nothing."""
        matcher = self._matcher.deep_copy()
        shortest_first = self.vocabulary.shortest_first
        for _ in range(num_tokens):
            bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            allowed = shortest_first[bits[shortest_first] != 0]
            if allowed.size:
                matcher.consume_token(int(allowed[0]))
            if matcher.is_error():
                return first_line(matcher.get_error())
        return ""

    def _allow_stops(self, row: NDArray[np.int32]) -> None:
        bits = row.view(np.uint32)
        for token_id in self.vocabulary.stop_token_ids:
            bits[token_id >> 5] |= np.uint32(1 << (token_id & 31))

    def _may_end(self) -> bool:
        accepting: bool = self._matcher.is_accepting()
        return accepting and not self._matcher.is_error()

    def _consume(self, token_id: int) -> bool:
        # An id outside the vocabulary would put the matcher in error for good; releases before 1 take anything where
        # nothing may follow.
        if (
            self._matcher.is_stopped()
            or not 0 <= token_id < self.vocabulary.vocab_size
            or self.vocabulary.token_bytes[token_id] is None
        ):
            return False
        consumed: int = self._matcher.try_consume_tokens([token_id])
        return consumed == 1


def first_line(message: str) -> str:
    """Of an error of the library's, which may go on with the parser's whole state."""
    lines = message.strip().splitlines()
    return lines[0][:200] if lines else ""
