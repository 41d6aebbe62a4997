"""A regex through outlines-core to AutomatonArrays. Runs in a process that can be killed: an automaton may explode.

outlines-core 0.2.14 drops the transitions after a match and prefers the leftmost alternative, so
`[0-9]+(\\.[0-9]+)?` would refuse 3.14 and `(cat|category)` would never give category. One sentinel character behind
the pattern cures both: the only match is after it, and the end is allowed exactly where it leads to a final state. The
vocabulary given to outlines-core is the 256 bytes and the sentinel; the model's tokens are laid over the byte automaton
by TokenTrie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from outlines_core import Index, Vocabulary

from briton.guidance.automaton import AutomatonArrays
from briton.guidance.token_trie import Hits, Ints, TokenTrie

_SENTINEL = 256
_EOS = 257


class RegexError(ValueError):
    """The pattern is wrong, or nothing matches it; the message says which."""


class _Masks(NamedTuple):
    row_of_state: Ints  # [states]
    rows: Ints  # [distinct masks, words]
    longest_token: Ints  # [distinct masks] bytes
    lives: NDArray[np.bool_]  # [states]


class RegexIndexer:
    """Compiles patterns for one vocabulary."""

    def __init__(self, token_bytes: Sequence[bytes | None], stop_token_ids: Sequence[int], max_bytes: int) -> None:
        self._trie = TokenTrie(token_bytes)
        self._stop_token_ids = np.array(stop_token_ids)
        self._max_bytes = max_bytes
        self._bytes = Vocabulary(_EOS, {bytes([b]): [b] for b in range(256)})
        self._bytes_and_sentinel = Vocabulary(
            _EOS, {**{bytes([b]): [b] for b in range(256)}, "\U0010ffff".encode(): [_SENTINEL]}
        )

    def compile(self, pattern: str) -> AutomatonArrays:
        """The automaton of all strings that match the whole pattern. Raises RegexError."""
        table, accepts, start = self._byte_automaton(pattern)
        table, accepts, start = _prune(table, accepts, start)
        next_state, byte_class = _byte_classes(table)
        masks = self._masks(next_state, byte_class, accepts, np.arange(len(accepts)) > 0)
        if not masks.lives[1:].all():  # tokens that lead to where the vocabulary cannot go on are not allowed either
            masks = self._masks(next_state, byte_class, accepts, masks.lives)
        if not masks.lives[start]:
            raise RegexError("the model's vocabulary cannot spell any string that matches")
        return AutomatonArrays(
            byte_class=byte_class.tobytes(),
            next_state=next_state,
            accepts=accepts.astype(np.uint8).tobytes(),
            lives=masks.lives.astype(np.uint8).tobytes(),
            forced_byte=_forced_bytes(table, accepts),
            row_of_state=masks.row_of_state,
            rows=masks.rows,
            longest_token=masks.longest_token,
            start=start,
        )

    def _byte_automaton(self, pattern: str) -> tuple[Ints, NDArray[np.bool_], int]:
        """(next state [states, 256], where the end is allowed [states], start); 0 is dead, the last after the end."""
        try:
            Index(pattern, self._bytes)  # alone first: "a)|(b" is a pattern only inside the sentinel's group
            index = Index(f"(?:{pattern})\\x{{10FFFF}}", self._bytes_and_sentinel)
        except ValueError as error:
            raise RegexError(_explain(str(error))) from None
        transitions = index.get_transitions()
        finals = index.get_final_states()
        number = {state: i for i, state in enumerate(transitions, start=1)}
        table = np.zeros((len(number) + 2, 256), np.int32)
        accepts = np.zeros(len(number) + 2, np.bool_)
        for state, following in transitions.items():
            row = number[state]
            for token, to in following.items():
                if token == _SENTINEL:
                    accepts[row] = to in finals
                elif token < 256 and to in number:
                    table[row, token] = number[to]
        accepts[-1] = True
        return table, accepts, number.get(index.get_initial_state(), 0)

    def _masks(
        self, next_state: Ints, byte_class: NDArray[np.uint8], accepts: NDArray[np.bool_], lives: NDArray[np.bool_]
    ) -> _Masks:
        """The masks of tokens that lead to `lives`; and from where tokens, not just bytes, can reach the end."""
        trie, num_states = self._trie, len(next_state)
        num_words = (trie.vocab_size + 31) // 32
        row_of: dict[bytes, int] = {}
        longest: list[int] = []
        row_of_state = np.zeros(num_states, np.int32)
        edges = []
        for hits in trie.walk(next_state, byte_class):
            living = np.flatnonzero(lives[hits.state])
            if len(living) < len(hits.state):
                hits = hits._replace(origin=hits.origin[living], node=hits.node[living], state=hits.state[living])
            edges.append(_distinct_edges(hits, num_states))
            allowed = trie.bits(hits)
            ends = np.flatnonzero(accepts[hits.first : hits.first + hits.width])
            allowed[np.ix_(ends, self._stop_token_ids)] = True
            packed = np.zeros((hits.width, num_words * 4), np.uint8)
            packed[:, : (trie.vocab_size + 7) // 8] = np.packbits(allowed, axis=1, bitorder="little")
            for i in range(hits.width):
                row = row_of.setdefault(packed[i].tobytes(), len(row_of))
                if row == len(longest):
                    longest.append(int((trie.token_length * allowed[i]).max()))
                row_of_state[hits.first + i] = row
            if len(row_of) * num_words * 4 > self._max_bytes:
                raise RegexError(f"its masks need more than {self._max_bytes >> 20} MiB: simplify it")
        origin, to = np.divmod(np.concatenate(edges), num_states)
        return _Masks(
            row_of_state=row_of_state,
            rows=np.frombuffer(b"".join(row_of), "<i4").reshape(len(row_of), num_words).astype(np.int32),
            longest_token=np.array(longest, np.int32),
            lives=_backward(origin, to, accepts) & (np.arange(num_states) > 0),
        )


def _explain(message: str) -> str:
    if "Found no transitions" in message:
        return "no string matches it"
    detail = message.strip("'").removeprefix("Failed to build DFA ")[:200]
    return f"not a regular expression in Rust's syntax, which has no look-around and no back-references: {detail}"


def _distinct_edges(hits: Hits, num_states: int) -> NDArray[np.int64]:
    """origin * num_states + state, each once."""
    edges: NDArray[np.int64] = (hits.origin.astype(np.int64) + hits.first) * num_states + hits.state
    if hits.width * num_states <= 16 * len(edges):  # dense: marking is faster than sorting
        seen = np.zeros(hits.width * num_states, np.bool_)
        seen[edges - hits.first * num_states] = True
        return np.flatnonzero(seen) + hits.first * num_states
    return np.unique(edges)


def _byte_classes(table: Ints) -> tuple[Ints, NDArray[np.uint8]]:
    """`table` [states, 256] without repeated columns, [states, classes], and the class of each byte."""
    class_of: dict[bytes, int] = {}
    columns = np.ascontiguousarray(table.T)
    byte_class = [class_of.setdefault(column.tobytes(), len(class_of)) for column in columns]
    first = [byte_class.index(c) for c in range(len(class_of))]
    return np.ascontiguousarray(table[:, first]), np.array(byte_class, np.uint8)


def _prune(table: Ints, accepts: NDArray[np.bool_], start: int) -> tuple[Ints, NDArray[np.bool_], int]:
    """Drop the states that cannot reach the end: the sentinel's own bytes, spelled singly, lead to such."""
    origin, byte = np.nonzero(table)
    keep = _backward(origin, table[origin, byte].astype(np.int64), accepts)
    keep[0] = keep[-1] = True
    if not keep[start] or start == 0:
        raise RegexError("no string matches it")
    number = np.where(keep, np.cumsum(keep) - 1, 0).astype(np.int32)
    return number[table][keep], accepts[keep], int(number[start])


def _backward(origin: NDArray[np.int64], to: NDArray[np.int64], ends: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The states with a path along the edges to one of `ends`."""
    reach: NDArray[np.bool_] = ends.copy()
    order = np.argsort(to, kind="stable")
    origin, to = origin[order], to[order]
    first = np.searchsorted(to, np.arange(len(ends) + 1))
    frontier = np.flatnonzero(reach)
    while frontier.size:
        begin, count = first[frontier], first[frontier + 1] - first[frontier]
        index = np.arange(count.sum()) + np.repeat(begin - (np.cumsum(count) - count), count)
        frontier = np.unique(origin[index])
        frontier = frontier[~reach[frontier]]
        reach[frontier] = True
    return reach


def _forced_bytes(table: Ints, accepts: NDArray[np.bool_]) -> NDArray[np.int16]:
    alive = table != 0
    forced = (alive.sum(axis=1) == 1) & ~accepts
    return np.where(forced, alive.argmax(axis=1), -1).astype(np.int16)
