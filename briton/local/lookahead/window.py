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

from briton.config.lookahead import LookaheadConfig
from briton.local.draft import ROOT, Draft
from briton.local.lookahead.pool import NgramPool


class LookaheadWindow:
    """The window of one sequence, and what it finds into `pool`.

    Invariant, with f levels and `lead` = N-1-f: level 0 follows the sequence's last token by 1, 2, ..., lead+W-1
    places, level j >= 1 by lead+j, ..., lead+j+W-1.
    """

    def __init__(self, config: LookaheadConfig, token_ids: Sequence[int], pool: NgramPool) -> None:
        """`token_ids`: the sequence so far, not empty. The first guesses are drawn from it, always the same ones."""
        self._width, self._ngram_size = config.window_size, config.ngram_size
        self._pool = pool
        self._last = token_ids[-1]
        self._levels: list[list[int]] = []
        if self._ngram_size > 1:
            self._levels.append(random.Random(0).choices(token_ids, k=self._width + self._ngram_size - 3))

    @property
    def num_nodes(self) -> int:
        """Draft tokens it takes in the next step: N-2 + (W-1)(N-1) once the levels are filled, fewer before."""
        return sum(len(level) for level in self._levels)

    @property
    def _lead(self) -> int:
        """Levels that are missing."""
        return self._ngram_size - 1 - len(self._levels)

    def attach(self, branches: Sequence[Sequence[int]]) -> Draft:
        """One step's draft: the branches as candidates, then the window, column 0 first. Its rows are its top level, by
        column; where level 0 is the top (N = 2), column 0 has no row: it is the sequence's own."""
        candidates = Draft.trie(branches)
        if not self._levels:
            return candidates
        token_ids, parents = list(candidates.token_ids), list(candidates.parents)

        def add(tokens: Sequence[int], parent: int) -> list[int]:
            """A chain; the nodes from its parent on."""
            nodes = [parent, *range(len(token_ids), len(token_ids) + len(tokens))]
            token_ids.extend(tokens)
            parents.extend(nodes[:-1])
            return nodes

        columns = list(zip(*self._levels[1:], strict=True)) or [()] * self._width
        tops = [add(columns.pop(0), ROOT)[-1]] if self._lead == 0 else []
        heads = add(self._levels[0], ROOT)[-len(columns) :] if columns else []
        tops += [add(column, head)[-1] for column, head in zip(columns, heads, strict=True)]
        rows = tuple(node for node in tops if node != ROOT)
        return Draft(tuple(token_ids), tuple(parents), candidates.num_candidates, rows)

    def update(self, outputs: Sequence[int], accepted: Sequence[int]) -> None:
        """Go on after a step in which the sequence got `accepted`, at least one token.

        `outputs`: the likeliest next token of each window row; nothing, when the step had no window. Raises ValueError
        for any other number of them.

        The window moves by the one place of an iteration, whatever was accepted, as the authors' code and TensorRT-LLM
        have it. (To move it up to the places that its guesses were for was tried, with the new columns drawn from the
        prompt, from the pool or from their neighbours: no more was accepted, and less where columns grew alike.)
        """
        if not accepted:
            raise ValueError("a step gives a sequence at least one token")
        if outputs:
            self._iterate([*outputs] if self._ngram_size > 2 else [accepted[0], *outputs])
        self._last = accepted[-1]

    def _iterate(self, answers: list[int]) -> None:
        """One Jacobi iteration, from the top level's answers, by column."""
        if len(answers) != self._width or not self._levels:
            raise ValueError(f"{len(answers)} answers to a window of {self._width} columns, {len(self._levels)} levels")
        if self._lead == 0:
            for ngram in zip([self._last, *self._levels[0]], *self._levels[1:], answers, strict=True):
                self._pool.add(ngram)
            del self._levels[0]
        self._levels.append(answers)
        del self._levels[0][0]  # the text itself is now where this was
