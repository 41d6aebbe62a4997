"""How much is tried in a step: as many of the likeliest draft tokens as bring the most output tokens a second.

Goodput is what is maximised (as in SmartSpec, Liu et al. 2024): a step's expected output tokens over its expected
seconds. With a few sequences a draft is nearly free; in a full batch only what is all but certain is worth its cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple

from briton.local.draft import Draft
from briton.local.lookahead.costs import CostCurve

# What a step with drafts must promise over one without: both are estimates, and steps that alternate between two graphs
# find less of their weights in the CPU's cache.
_MARGIN = 1.08


class Proposal(NamedTuple):
    """What one sequence would like to try: the draft's candidates in order of worth, and perhaps a window beside."""

    draft: Draft
    gains: Sequence[float]  # of each candidate: the probability that it is accepted
    num_context_tokens: int
    window: Draft | None = None  # the same candidates, with the lookahead window
    window_gain: float = 0.0  # output tokens that the window is worth

    @property
    def num_window_nodes(self) -> int:
        """Tokens of the window itself."""
        return 0 if self.window is None else len(self.window) - self.window.num_candidates


def choose(
    curve: CostCurve,
    num_tokens: int,
    num_due: int,
    proposals: Sequence[Proposal | None],
    max_tokens: int,
    shape: int,
) -> list[Draft | None]:
    """The part of each proposal to compute, None for nothing.

    `num_tokens` are in the step anyway and give `num_due` output tokens; at most `max_tokens` more are added. `shape`
    is the number of tokens that the graph of any size is prepared for.
    """
    drafts: list[Draft | None] = [None] * len(proposals)
    if num_due < 1 or max_tokens < 1:
        return drafts
    step = _Step(curve, num_tokens, num_due, proposals, max_tokens, shape)
    ranked = _ranked(proposals)
    best, count = step.best_cut(ranked)
    chosen: Sequence[int] = ()
    windows = [i for i, p in enumerate(proposals) if p is not None and p.num_window_nodes and p.window_gain > 0]
    # One or all: each brings and costs about the same, and a ratio of two linear functions is largest at an end.
    for some in [windows[:1], windows][: len(windows)]:
        goodput, some_count = step.best_cut(ranked, some)
        if goodput > best:
            best, count, chosen = goodput, some_count, some
    if best <= _MARGIN * step.plain_goodput:
        return drafts
    counts = [0] * len(proposals)
    for _, _, i in ranked[:count]:
        counts[i] += 1
    for i, (proposal, num_candidates) in enumerate(zip(proposals, counts, strict=True)):
        if proposal is not None and proposal.window is not None and i in chosen:
            drafts[i] = proposal.window.keep(num_candidates)
        elif proposal is not None and num_candidates:
            drafts[i] = proposal.draft.cut(num_candidates)
    return drafts


class _Step:
    """What one step would bring and cost.

    What parts of prompts add to its seconds is owed whatever is drafted, and is left out with drafts and without:
    beside a long prompt a doubtful token would else look free, and it costs what could compute a sure one later.
    """

    def __init__(
        self,
        curve: CostCurve,
        num_tokens: int,
        num_due: int,
        proposals: Sequence[Proposal | None],
        max_tokens: int,
        shape: int,
    ) -> None:
        self._curve, self._shape, self._proposals = curve, shape, proposals
        self._num_tokens, self._num_due = num_tokens, num_due
        self._limit = num_tokens + max_tokens
        self._plain = curve.plain_size(num_tokens)
        self._owed = max(0.0, curve.cost(self._plain) - curve.cost(curve.plain_size(num_due)))
        self._contexts = [0 if proposal is None else proposal.num_context_tokens for proposal in proposals]
        self._plain_context_seconds = curve.context_cost(1) * sum(self._contexts)

    @property
    def plain_goodput(self) -> float:
        """Output tokens a second without drafts."""
        return self._num_due / (self._seconds(self._plain) + self._plain_context_seconds)

    def best_cut(self, ranked: Sequence[tuple[float, float, int]], windows: Sequence[int] = ()) -> tuple[float, int]:
        """The most output tokens a second, and how many of the ranked candidates bring them, with the windows of these
        proposals. No goodput where the windows are too large.

        Tokens that fill a size up cost what they read of their context alone.
        """
        curve, contexts = self._curve, self._contexts
        tokens, expected, context_seconds = self._num_tokens, float(self._num_due), self._plain_context_seconds
        num_queries = [1] * len(contexts)
        for i in windows:
            proposal = self._proposals[i]
            assert proposal is not None
            tokens += proposal.num_window_nodes
            expected += proposal.window_gain
            num_queries[i] += proposal.num_window_nodes
            context_seconds += contexts[i] * (curve.context_cost(num_queries[i]) - curve.context_cost(1))
        if tokens > self._limit:
            return 0.0, 0
        size = max(self._plain, curve.padded(tokens))
        size_seconds = self._seconds(size)
        best, best_count = expected / (size_seconds + context_seconds), 0
        most = expected + sum([gain for _, gain, _ in ranked])
        context_steps, last_step = curve.context_steps, len(curve.context_steps) - 1
        for count, (_, gain, i) in enumerate(ranked[: self._limit - tokens], 1):
            tokens += 1
            if tokens > size:
                size = curve.padded(tokens)
                size_seconds = self._seconds(size)
                if most <= best * (curve.cost(size) - self._owed + context_seconds):
                    break
            expected += gain
            others = num_queries[i]
            num_queries[i] = others + 1
            step = context_steps[others] if others < last_step else context_steps[-1]
            context_seconds += contexts[i] * step
            if expected > best * (size_seconds + context_seconds):
                best, best_count = expected / (size_seconds + context_seconds), count
        return best, best_count

    def _seconds(self, size: int) -> float:
        """Of a step of this size, without what it reads of the context."""
        # Half of the cost of a change: a size that pays once mostly stays for some steps.
        is_ready = size == self._shape or size in self._curve.fixed_sizes
        switch = 0.0 if is_ready else self._curve.switch_seconds / 2
        return self._curve.cost(size) - self._owed + switch


def _ranked(proposals: Sequence[Proposal | None]) -> list[tuple[float, float, int]]:
    """(rank, gain, proposal) of all candidates, best first. A candidate ranks no higher than those before it in its
    draft: they come with it."""
    ranked: list[tuple[float, float, int]] = []
    for i, proposal in enumerate(proposals):
        if proposal is not None:
            gains = proposal.gains
            ranked += [(least, gain, i) for least, gain in zip(accumulate(gains, min), gains, strict=True)]
    ranked.sort(key=itemgetter(0), reverse=True)
    return ranked


class WindowWorth:
    """How many tokens a step gains where the window runs, over an engine's requests.

    It starts with hope, so that the window is tried, and comes back to it slowly while the window is off: texts change.
    """

    _HOPE, _WEIGHT = 3.0, 8.0  # tokens a step; steps
    _KEPT, _KEPT_IDLE = 0.98, 0.9998  # of what is known, after a step

    def __init__(self) -> None:
        self._gained = 0.0
        self._steps = 0.0

    @property
    def worth(self) -> float:
        """Output tokens that a step gains."""
        return (self._gained + self._HOPE * self._WEIGHT) / (self._steps + self._WEIGHT)

    def observe(self, num_gained: int) -> None:
        """A step with a window: so many accepted tokens came from its n-grams alone."""
        self._gained = self._gained * self._KEPT + num_gained
        self._steps = self._steps * self._KEPT + 1

    def observe_idle(self) -> None:
        """A step without."""
        self._gained *= self._KEPT_IDLE
        self._steps *= self._KEPT_IDLE
