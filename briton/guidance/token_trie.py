"""From an automaton over bytes to the token mask of each state: all tokens and many states at once, in numpy.

A frontier of (state it began in, trie node, state reached) is carried down the trie of the vocabulary, level by level;
what reaches the dead state leaves it. Every node on the way that is a token, in a living state, is a bit of the mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]

# Frontier entries at a time, about 50 bytes each: as many as stay in the processor's cache.
_MAX_FRONTIER = 1 << 17


class Hits(NamedTuple):
    """Allowed tokens of a slice of states: `first` + origin goes to `state` by any token of `node`."""

    first: int  # the slice's first state
    width: int  # its length
    origin: Ints  # [hits] 0..width-1
    node: Ints  # [hits]
    state: Ints  # [hits]


class TokenTrie:
    """The vocabulary's tokens by their bytes. Node 0 is the root; the children of a node are contiguous."""

    def __init__(self, token_bytes: Sequence[bytes | None]) -> None:
        texts = sorted({t for t in token_bytes if t})
        ids_of: dict[bytes, list[int]] = {t: [] for t in texts}
        for token_id, text in enumerate(token_bytes):
            if text:
                ids_of[text].append(token_id)
        byte, first_child, num_children, first_token, num_tokens = [0], [0], [0], [0], [0]
        tokens: list[int] = []
        # Breadth first: a node is a range of the sorted texts that share its prefix.
        level = [(0, 0, len(texts))]  # (node, first text, last text + 1)
        depth = 0
        while level:
            below = []
            for node, low, high in level:
                first_child[node] = len(byte)
                at = low
                if at < high and len(texts[at]) == depth:  # the shortest sorts first
                    first_token[node], num_tokens[node] = len(tokens), len(ids_of[texts[at]])
                    tokens += ids_of[texts[at]]
                    at += 1
                while at < high:
                    label, begin = texts[at][depth], at
                    while at < high and texts[at][depth] == label:
                        at += 1
                    below.append((len(byte), begin, at))
                    byte.append(label)
                    for column in (first_child, num_children, first_token, num_tokens):
                        column.append(0)
                num_children[node] = len(byte) - first_child[node]
            level = below
            depth += 1
        self.vocab_size = len(token_bytes)
        self.byte = np.array(byte, np.uint8)
        self.first_child = np.array(first_child, np.int32)
        self.num_children = np.array(num_children, np.int32)
        self.first_token = np.array(first_token, np.int32)
        self.num_tokens = np.array(num_tokens, np.int32)
        self.tokens = np.array(tokens, np.int32)
        self.token_length = np.array([len(t) if t else 0 for t in token_bytes], np.int32)

    def walk(self, next_state: Ints, byte_class: NDArray[np.uint8]) -> Iterator[Hits]:
        """The allowed tokens of every state of `next_state` [states, classes], in slices of states."""
        num_states = len(next_state)
        node_class = byte_class[self.byte].astype(np.int32)
        flat = np.ascontiguousarray(next_state).reshape(-1)
        num_classes = next_state.shape[1]
        begin = 0
        # The width of a slice follows the frontier seen in the last one.
        width = 8
        while begin < num_states:
            count = min(width, num_states - begin)
            origin = np.arange(count, dtype=np.int32)
            node = np.zeros(count, np.int32)
            state = np.arange(begin, begin + count, dtype=np.int32)
            found: list[tuple[Ints, Ints, Ints]] = []
            widest = 1
            while node.size:
                widest = max(widest, node.size)
                parent, node = expand(self.first_child[node], self.num_children[node])
                state = flat[(state * num_classes)[parent] + node_class[node]]
                alive = np.flatnonzero(state)
                origin, node, state = origin[parent[alive]], node[alive], state[alive]
                is_token = np.flatnonzero(self.num_tokens[node])
                found.append((origin[is_token], node[is_token], state[is_token]))
            yield Hits(begin, count, *(np.concatenate(part) for part in zip(*found, strict=True)))
            begin += count
            width = int(min(4 * count, 4096, max(1, _MAX_FRONTIER * count // widest)))

    def bits(self, hits: Hits) -> NDArray[np.bool_]:
        """The hits as booleans, [states of the slice, vocab_size]."""
        allowed = np.zeros((hits.width, self.vocab_size), np.bool_)
        which, index = expand(self.first_token[hits.node], self.num_tokens[hits.node])
        allowed[hits.origin[which], self.tokens[index]] = True
        return allowed


def expand(first: Ints, count: Ints) -> tuple[Ints, Ints]:
    """The ranges first[i] .. first[i] + count[i], one after the other: (i of each element, the element)."""
    which = np.repeat(np.arange(len(first), dtype=np.int32), count)
    shift = first - (np.cumsum(count, dtype=np.int32) - count)
    return which, np.arange(len(which), dtype=np.int32) + shift[which]
