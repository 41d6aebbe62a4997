"""The lookahead window (Fu, Bailis, Stoica, Zhang 2024): Jacobi iteration that gives n-grams of what may come.

The window guesses at the tokens after the sequence's last one, W columns by N-1 levels. Column i of level 0 guesses the
token i places after the last (column 0 is the last itself); a column's levels continue it, each level the model's
answer of one step before to the level below. A step computes all of it: a level-0 token sees the level-0 tokens before
it, a token of a higher level sees its own column and what the column's level 0 sees. The answers to the top level
complete W n-grams, one a column, and become the top level of the next step, in which the lowest level is left out.

In the first N-2 steps levels are added one by one, over a level 0 that is ahead by as many places as levels are
missing. So nothing is computed that is not used, and a step has the draft tokens that TensorRT-LLM's
`lookaheadAlgorithm` counts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import cycle

from briton.local.lookahead.draft import ROOT, Draft
from briton.local.lookahead.pool import NgramPool
from briton.types import LookaheadConfig


class LookaheadWindow:
    """The window of one sequence, and what it finds into `pool`.

    Invariant, with f levels and `lead` = N-1-f: level 0 guesses the tokens 1, 2, ..., lead+W-1 places after the
    sequence's last one; level j >= 1 guesses those lead+j, ..., lead+j+W-1 places after it.
    """

    def __init__(self, config: LookaheadConfig, token_ids: Sequence[int], pool: NgramPool) -> None:
        """`token_ids`: the sequence so far, not empty. The first guesses are drawn from it, always the same ones."""
        self._width, self._ngram_size = config.window_size, config.ngram_size
        self._pool = pool
        self._last = token_ids[-1]
        num_guesses = self._width + self._ngram_size - 3 if self._ngram_size > 1 else 0
        guesses = random.Random(0).choices(token_ids, k=num_guesses)
        self._levels = [guesses] if self._ngram_size > 1 else []
        self._fresh = cycle(tuple(guesses) or (self._last,))  # a copy: level 0 is changed in place

    @property
    def num_nodes(self) -> int:
        """Draft tokens it takes in the next step: N-2 + (W-1)(N-1) once the levels are filled, fewer before."""
        return sum(len(level) for level in self._levels)

    def attach(self, branches: Sequence[Sequence[int]]) -> Draft:
        """One step's draft: the branches as candidates, then the window. Its rows are its top level, by column, but for
        a top level 0 (N = 2), whose column 0 is the sequence's own row."""
        candidates = Draft.trie(branches)
        token_ids, parents = list(candidates.token_ids), list(candidates.parents)
        above = [ROOT]  # nodes that the next level's continue, by column
        for i, level in enumerate(self._levels):
            nodes = list(range(len(token_ids), len(token_ids) + len(level)))
            token_ids += level
            if i == 0:
                parents += [ROOT, *nodes[:-1]][: len(nodes)]
                above = [ROOT, *nodes][-self._width :]
            else:
                parents += above
                above = nodes
        rows = tuple(node for node in above if node != ROOT)
        return Draft(tuple(token_ids), tuple(parents), candidates.num_candidates, rows)

    def update(self, outputs: Sequence[int], accepted: Sequence[int]) -> None:
        """Go on after a step in which the sequence got `accepted`, at least one token.

        `outputs`: the likeliest next token of each window row, or nothing, when the step had no window. Raises
        ValueError for any other number of them.

        Where more than one token was accepted, guesses are moved up to the places they are for. (The authors' code and
        TensorRT-LLM move by one place always, so that from then on the window lags behind.)
        """
        if not accepted:
            raise ValueError("a step gives a sequence at least one token")
        if self._levels:
            num_left_behind = len(accepted)
            if outputs:
                self._iterate(outputs, accepted[0])
                num_left_behind -= 1
            self._advance(num_left_behind)
        self._last = accepted[-1]

    def _iterate(self, outputs: Sequence[int], next_token_id: int) -> None:
        """One step of Jacobi iteration, after which the sequence has one token more."""
        answers = [*outputs] if self._ngram_size > 2 else [next_token_id, *outputs]
        if len(answers) != self._width:
            raise ValueError(f"{len(outputs)} outputs of a window of {self._width} columns")
        if len(self._levels) == self._ngram_size - 1:
            heads = [self._last, *self._levels[0]]
            for ngram in zip(heads, *self._levels[1:], answers, strict=True):
                self._pool.add(ngram)
            del self._levels[0]
        self._levels.append(answers)
        del self._levels[0][0]  # the new last token, or what was guessed for it

    def _advance(self, num_places: int) -> None:
        """Move on without an iteration. Each level takes over what the next, which is ahead, guessed for its new
        places; for the top level the pool is asked, and at last the prompt."""
        if num_places == 0:
            return
        ahead = self._levels[-1] + self._continue(self._levels[-1], num_places)
        self._levels[-1] = ahead[num_places:]
        for i in reversed(range(len(self._levels) - 1)):
            ahead = self._levels[i] + ahead[self._width - 1 : self._width - 1 + num_places]
            self._levels[i] = ahead[num_places:]

    def _continue(self, level: Sequence[int], num_tokens: int) -> list[int]:
        """Tokens that may come after a level's."""
        token_ids: list[int] = []
        last = level[-1] if level else self._last
        while len(token_ids) < num_tokens:
            known = self._pool.following(last, 1)
            token_ids += known[0] if known else [next(self._fresh)]
            last = token_ids[-1]
        return token_ids[:num_tokens]
