"""A finished regex or choice as arrays, and the guide that walks them. No regex engine is needed to run it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from briton.guidance.vocabulary import Vocabulary

DEAD = 0  # the state of whatever cannot match any more
_MAX_FORCED_TOKENS = 64
_FORCED_CONTEXT = 64  # bytes of forced text that the choice of its first token is made from


class AutomatonArrays(NamedTuple):
    """A finite automaton over bytes, and the token mask of each of its states.

    State 0 is dead, the last one is after the end. The next state of (state, token) is found by walking the token's
    bytes: a table of [states, tokens] would be hundreds of times larger, and a token has four bytes or so.
    """

    byte_class: bytes  # [256] byte -> class; bytes of one class lead to the same states everywhere
    next_state: NDArray[np.int32]  # [states, classes]
    accepts: bytes  # [states] 1 where the end is allowed
    lives: bytes  # [states] 1 where the vocabulary can still reach the end
    forced_byte: NDArray[
        np.int16
    ]  # [states] the one byte that can follow, -1 where there are several or the end is allowed
    row_of_state: NDArray[np.int32]  # [states] index into `rows`
    rows: NDArray[np.int32]  # [distinct masks, ceil(vocab_size / 32)]
    longest_token: NDArray[np.int32]  # [distinct masks] bytes of the longest token in each
    start: int

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(len(a) if isinstance(a, bytes) else a.nbytes for a in self[:-1])


class Automaton:
    """Shared by all guides of one pattern: the arrays, laid out for single look-ups."""

    def __init__(self, arrays: AutomatonArrays, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.start = arrays.start
        self.end = len(arrays.accepts) - 1
        self.nbytes = arrays.nbytes
        self.accepts = arrays.accepts
        self.rows = list(arrays.rows)
        # Indexing a memoryview gives a Python int four times as fast as indexing an array.
        self.row_of_state = arrays.row_of_state.data
        self.longest_token = arrays.longest_token.data
        self._forced_byte = arrays.forced_byte.data
        self._byte_class = arrays.byte_class
        self._num_classes = arrays.next_state.shape[1]
        self._next_state = np.ascontiguousarray(arrays.next_state).reshape(-1).data
        self._lives = arrays.lives
        self._forced_token: dict[int, int | None] = {}  # of the states asked for
        self._is_terminal = bytes(
            accepts and not following.any()
            for accepts, following in zip(arrays.accepts, arrays.next_state, strict=True)
        )

    def step(self, state: int, token_id: int) -> int:
        """The state after a token; DEAD when it is not allowed."""
        if token_id in self.vocabulary.stops:
            return self.end if self.accepts[state] else DEAD
        if not 0 <= token_id < self.vocabulary.vocab_size:
            return DEAD
        data = self.vocabulary.token_bytes[token_id]
        if data is None:
            return DEAD
        next_state, num_classes = self._next_state, self._num_classes
        for c in data.translate(self._byte_class):
            state = next_state[state * num_classes + c]
        return state if self._lives[state] else DEAD

    def is_terminal(self, state: int) -> bool:
        """True where nothing but the end may follow."""
        return bool(self._is_terminal[state])

    def forced_tokens(self, state: int) -> list[int]:
        """The tokens of `forced_token`, one after another, some 64 at most."""
        token_ids: list[int] = []
        while len(token_ids) < _MAX_FORCED_TOKENS and (token_id := self.forced_token(state)) is not None:
            token_ids.append(token_id)
            state = self.step(state, token_id)
        return token_ids

    def forced_token(self, state: int) -> int | None:
        """The first canonical token of the bytes that must follow; None where there is a choice of bytes, or where the
        token could be longer than they are."""
        if self._forced_byte[state] < 0:
            return None
        if state not in self._forced_token:
            self._forced_token[state] = self._find_forced_token(state)
        return self._forced_token[state]

    def _find_forced_token(self, state: int) -> int | None:
        forced = bytearray()
        at = state
        while (byte := self._forced_byte[at]) >= 0 and len(forced) < _FORCED_CONTEXT:
            forced.append(byte)
            at = self._next_state[at * self._num_classes + self._byte_class[byte]]
        open_ended = not self.is_terminal(at)
        if open_ended and self.longest_token[self.row_of_state[state]] > len(forced):
            return None
        token_ids = self.vocabulary.tokenize(forced.decode("utf-8", errors="ignore"))
        return token_ids[0] if token_ids and self.step(state, token_ids[0]) != DEAD else None


class AutomatonGuide:
    """A Guide over an Automaton: a state after each consumed token, so that rolling back is cutting a list.

    As with llguidance, where bytes are forced the mask holds their canonical token alone, while `advance` takes
    whatever spells them.
    """

    def __init__(self, automaton: Automaton, path: list[int] | None = None) -> None:
        self._automaton = automaton
        self._path = path or [automaton.start]

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        """Write the mask of the next token into `row`."""
        forced = self._automaton.forced_token(self._path[-1])
        if forced is None:
            row[:] = self._automaton.rows[self._automaton.row_of_state[self._path[-1]]]
        else:
            row[:] = 0
            row.view(np.uint32)[forced >> 5] = 1 << (forced & 31)

    def mask_row(self) -> int | None:
        """Which of the automaton's `rows` the next mask is; None where it holds a forced token alone."""
        state = self._path[-1]
        return self._automaton.row_of_state[state] if self._automaton.forced_token(state) is None else None

    def advance(self, token_ids: Sequence[int]) -> bool:
        """Consume tokens, or none of them when one is not allowed."""
        state = self._path[-1]
        following = []
        for token_id in token_ids:
            state = self._automaton.step(state, token_id)
            if state == DEAD:
                return False
            following.append(state)
        self._path += following
        return True

    def rollback(self, n: int) -> None:
        """Undo the last n consumed tokens. Raises ValueError when there were fewer."""
        if not 0 <= n < len(self._path):
            raise ValueError(f"cannot roll back {n} of {len(self._path) - 1} tokens")
        del self._path[len(self._path) - n :]

    def is_terminated(self) -> bool:
        """True when nothing but the end may follow, or a stop id was consumed."""
        return self._automaton.is_terminal(self._path[-1])

    def forced_tokens(self) -> list[int]:
        """Tokens that must come next, in canonical tokenization; empty where there is a choice."""
        return self._automaton.forced_tokens(self._path[-1])

    def copy(self) -> Self:
        """An independent guide in the same state."""
        return type(self)(self._automaton, self._path.copy())

    @property
    def automaton(self) -> Automaton:
        """What all copies share."""
        return self._automaton

    @property
    def vocabulary(self) -> Vocabulary:
        """What it knows of the tokens."""
        return self._automaton.vocabulary

    @property
    def memory(self) -> Automaton:
        """What all copies share: it lives as long as any of them."""
        return self._automaton

    @property
    def nbytes(self) -> int:
        """Memory held by what all copies share, in bytes."""
        return self._automaton.nbytes

    def is_healthy(self) -> bool:
        """Always: arrays do not wear out."""
        return True
