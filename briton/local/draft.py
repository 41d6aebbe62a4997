"""A draft: what is computed beside a sequence's own tokens in one step, in the hope that some of it is the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROOT = -1  # the parent of what follows the sequence's last token


@dataclass(frozen=True, slots=True)
class Draft:
    """Guessed tokens as a tree, parents before children. Node i follows node parents[i], or the sequence's last token.

    Nodes take the cache slots after the sequence's own tokens, in order; the position of a node is that of the
    sequence's last token plus its depth. A node attends to the whole sequence, its ancestors and itself, and to
    nothing else. Siblings differ in their tokens. The first `num_candidates` nodes may be accepted; the others are
    the lookahead window's, and of those the logits of `window_rows` alone are wanted.
    """

    token_ids: tuple[int, ...]
    parents: tuple[int, ...]
    num_candidates: int
    window_rows: tuple[int, ...] = ()

    @classmethod
    def chain(cls, token_ids: Sequence[int]) -> Draft:
        """One straight continuation."""
        return cls(tuple(token_ids), tuple(range(-1, len(token_ids) - 1)), len(token_ids))

    @classmethod
    def trie(cls, branches: Sequence[Sequence[int]]) -> Draft:
        """Several continuations, most likely first, common beginnings merged. The first branch is nodes 0, 1, 2, ..."""
        nodes: dict[tuple[int, int], int] = {}
        for branch in branches:
            parent = ROOT
            for token_id in branch:
                parent = nodes.setdefault((parent, token_id), len(nodes))
        return cls(tuple(t for _, t in nodes), tuple(p for p, _ in nodes), len(nodes))

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def is_chain(self) -> bool:
        """Whether plain causal attention is right for it."""
        return all(parent == node - 1 for node, parent in enumerate(self.parents))

    @property
    def rows(self) -> tuple[int, ...]:
        """Nodes whose logits are wanted, ascending."""
        return (*range(self.num_candidates), *self.window_rows)

    def child(self, node: int, token_id: int) -> int | None:
        """The candidate that follows `node` (ROOT: the sequence itself) with this token."""
        for i in range(node + 1, self.num_candidates):
            if self.parents[i] == node and self.token_ids[i] == token_id:
                return i
        return None

    def depths(self) -> list[int]:
        """Of each node: 1 follows the sequence's last token."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return depths

    def cut(self, num_candidates: int) -> Draft:
        """The first candidates alone, without a window."""
        n = min(num_candidates, self.num_candidates)
        return Draft(self.token_ids[:n], self.parents[:n], n)

    def keep(self, num_candidates: int) -> Draft:
        """The first candidates, and the window, whose nodes hang from no candidate."""
        kept, dropped = self.cut(num_candidates), max(0, self.num_candidates - num_candidates)
        return Draft(
            kept.token_ids + self.token_ids[self.num_candidates :],
            kept.parents + tuple(p if p == ROOT else p - dropped for p in self.parents[self.num_candidates :]),
            len(kept),
            tuple(row - dropped for row in self.window_rows),
        )

    def mask(self, num_own: int) -> NDArray[np.uint8]:
        """Who may attend to whom among the sequence's `num_own` new tokens and this draft: [query, query], 1 = may."""
        size = num_own + len(self)
        mask = np.zeros((size, size), np.uint8)
        mask[:, :num_own] = np.tri(size, num_own, dtype=np.uint8)
        for node, parent in enumerate(self.parents):
            row = num_own + node
            if parent != ROOT:
                mask[row] = mask[num_own + parent]
            mask[row, row] = 1
        return mask
