"""How much is tried in a step: as many of the likeliest draft tokens as bring the most output tokens a second.

Goodput is what is maximised (as in SmartSpec, Liu et al. 2024): a step's expected output tokens over its expected
seconds. With a few sequences a draft is nearly free; in a full batch only what is all but certain is worth its cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from briton.local.lookahead.costs import CostCurve
from briton.local.lookahead.draft import Draft

# What a step with drafts must promise over one without: both are estimates, and steps that alternate between two graphs
# find less of their weights in the CPU's cache.
_MARGIN = 1.08
_SIZE_STEP = 8  # tokens between the sizes tried beyond the curve's last


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
    num_context = sum(p.num_context_tokens for p in proposals if p is not None)
    num_sequences = max(1, num_due)

    def seconds(size: int) -> float:
        # Half of the cost of a change: a size that pays once mostly stays for some steps.
        switch = 0.0 if size == shape or size in curve.fixed_sizes else curve.switch_seconds / 2
        return curve.cost(size, num_context, num_sequences) + switch

    ranked = _ranked(proposals)
    best, best_count, best_windows = _MARGIN * num_due / seconds(num_tokens), 0, False
    for windows in (False, True):
        base, expected = num_tokens, float(num_due)
        if windows:
            base += sum(p.num_window_nodes for p in proposals if p is not None)
            expected += sum(p.window_gain for p in proposals if p is not None)
            if base == num_tokens or base > num_tokens + max_tokens:
                break
        taken = 0
        for size in _sizes(curve, base, num_tokens + max_tokens):
            count = min(size - base, len(ranked))
            expected += sum(gain for gain, _ in ranked[taken:count])
            taken = count
            if (windows or count) and expected / seconds(size) > best:
                best, best_count, best_windows = expected / seconds(size), count, windows
            if count == len(ranked):
                break
    counts = [0] * len(proposals)
    for _, i in ranked[:best_count]:
        counts[i] += 1
    return [_cut(p, count, best_windows) for p, count in zip(proposals, counts, strict=True)]


def _ranked(proposals: Sequence[Proposal | None]) -> list[tuple[float, int]]:
    """(gain, proposal) of all candidates, best first. A candidate ranks no higher than those before it in its draft:
    they come with it."""
    ranked: list[tuple[float, int]] = []
    for i, proposal in enumerate(proposals):
        if proposal is None:
            continue
        least = 1.0
        for gain in proposal.gains:
            least = min(least, gain)
            ranked.append((least, i))
    ranked.sort(key=lambda entry: -entry[0])
    return ranked


def _sizes(curve: CostCurve, base: int, limit: int) -> list[int]:
    """Sizes worth comparing, ascending from `base`: up to each, more tokens cost nothing or little."""
    larger = [size for size in curve.sizes if size > base] or range(
        base + _SIZE_STEP, base + 9 * _SIZE_STEP, _SIZE_STEP
    )
    return sorted({base, *(min(size, limit) for size in larger)})


def _cut(proposal: Proposal | None, count: int, windows: bool) -> Draft | None:
    if proposal is None:
        return None
    if windows and proposal.window is not None:
        return proposal.window.keep(count)
    return proposal.draft.cut(count) if count else None


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
