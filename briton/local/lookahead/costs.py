"""What a step costs on this machine, by its number of tokens: measured at start, asked before every step."""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from statistics import median_low
from typing import Any, NamedTuple

from briton.local.padding import FIXED_SIZES, draft_step_size

_TURNS = 3
LONG_CONTEXT = 1024  # tokens, at which a step is timed again


class CostPoint(NamedTuple):
    """A step of one sequence that computes this many tokens at once."""

    num_tokens: int
    seconds: float  # without context
    seconds_per_context_token: float


@dataclass(frozen=True)
class CostCurve:
    """Points ascending in tokens and not descending in seconds. Raises ValueError for others.

    Between points it is linear, below the first as the first. Beyond the last it goes on as between the last and the
    point at half its tokens: a slope that no noise in one point makes steep or flat.
    """

    points: tuple[CostPoint, ...]
    fixed_sizes: tuple[int, ...] = ()  # with a graph of their own: free to come and go
    switch_seconds: float = 0.0  # when another number of tokens than last time is computed in the graph of any size

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("a cost curve has a point at least")
        for one, next_ in pairwise(self.points):
            if one.num_tokens >= next_.num_tokens or any(a > b for a, b in zip(one[1:], next_[1:], strict=True)):
                raise ValueError(f"{next_} cannot follow {one}: more tokens do not cost less")
        num_tokens, seconds, seconds_per_context_token = self.points[0]
        if num_tokens < 1 or seconds <= 0 or seconds_per_context_token < 0:
            raise ValueError(f"tokens and seconds of a step are positive, not {self.points[0]}")

    @classmethod
    def flat(cls, sizes: Sequence[int] = (1, 8, 16, 32, 64, 128)) -> CostCurve:
        """Every step costs the same, as on a GPU with a small batch."""
        return cls(tuple(CostPoint(size, 1.0, 0.0) for size in sizes), tuple(sizes))

    @classmethod
    def measure(
        cls,
        time_step: Callable[[int, int], float],
        sizes: Sequence[int],
        *,
        long_context: int = LONG_CONTEXT,
        fixed_sizes: Sequence[int] = (),
        switch_seconds: float = 0.0,
        max_seconds: float = 1.5,
    ) -> CostCurve:
        """The curve through medians of `time_step(num_tokens, num_context_tokens)`, in seconds, at ascending `sizes`.

        All sizes are timed in turns, so that what disturbs the machine for a while meets each of them but once. Of a
        slow machine only as many turns, and sizes, as `max_seconds` allow, two sizes at least. Nothing makes a step too
        fast: where one seems to cost more than a larger one, it costs what the larger one does.
        """
        deadline = time.monotonic() + max_seconds
        timed: list[tuple[list[float], list[float]]] = []  # of each size: without context, with
        for turn in range(_TURNS):
            for i, size in enumerate(sizes if turn == 0 else sizes[: len(timed)]):
                if (turn or i >= 2) and time.monotonic() > deadline:
                    break
                if turn == 0:
                    timed.append(([], []))
                for seconds, context in zip(timed[i], (0, long_context), strict=True):
                    time_step(size, context)  # the first of a size prepares it
                    seconds.append(time_step(size, context))
        short, long = (_lowered([median_low(pair[k]) for pair in timed]) for k in (0, 1))
        rates = _lowered([max(0.0, b - a) / max(1, long_context) for a, b in zip(short, long, strict=True)])
        measured = sizes[: len(short)]
        points = tuple(CostPoint(*point) for point in zip(measured, short, rates, strict=True))
        return cls(points, tuple(fixed_sizes), switch_seconds)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Ascending."""
        return tuple(point.num_tokens for point in self.points)

    @cached_property
    def context_steps(self) -> tuple[float, ...]:
        """Seconds for each token of context that a sequence's token adds which follows i others in the same step; the
        last for all further tokens."""
        rates = [self.context_cost(i) for i in range(1, self.sizes[-1] + 2)]
        return (rates[0], *(b - a for a, b in pairwise(rates)))

    def padded(self, num_tokens: int) -> int:
        """The size that a step with drafts is filled up to (see `padding.padded_size`)."""
        return draft_step_size(num_tokens, self.fixed_sizes)

    def plain_size(self, num_tokens: int) -> int:
        """The size that a step without drafts is computed as, one token a sequence (see `padding.padded_size`)."""
        for size in self.fixed_sizes:
            if num_tokens <= size:
                return size if num_tokens >= FIXED_SIZES.get(size, size) else num_tokens
        return num_tokens

    def cost(self, num_tokens: int, num_context_tokens: int = 0, num_sequences: int = 1) -> float:
        """Seconds of a step of so many tokens, evenly of `num_sequences` that have `num_context_tokens` together."""
        seconds = self._at(num_tokens, 1)
        if num_context_tokens:
            seconds += num_context_tokens * self.context_cost(max(1, num_tokens // num_sequences))
        return seconds

    def context_cost(self, num_tokens: int) -> float:
        """Seconds for each token of context of a sequence that computes so many tokens at once."""
        return self._at(num_tokens, 2)

    def as_dict(self) -> dict[str, Any]:
        """For logs and benchmarks."""
        return {**asdict(self), "points": [point._asdict() for point in self.points]}

    def __str__(self) -> str:
        steps = ", ".join(f"{point.num_tokens}: {point.seconds * 1e3:.1f}" for point in self.points)
        return f"ms of a step by its tokens: {steps}; another size: {self.switch_seconds * 1e3:.1f} more"

    def _at(self, num_tokens: int, column: int) -> float:
        sizes = self.sizes
        if num_tokens <= sizes[0] or len(sizes) == 1:
            return float(self.points[0][column])
        left, right = len(sizes) - 1, bisect_left(sizes, num_tokens)
        if right < len(sizes):
            left = right - 1
        else:
            right, left = left, max(0, bisect_right(sizes, sizes[-1] // 2) - 1)
        x0, y0, x1, y1 = sizes[left], self.points[left][column], sizes[right], self.points[right][column]
        return float(y1 + (y1 - y0) * (num_tokens - x1) / (x1 - x0))


def _lowered(values: Sequence[float]) -> list[float]:
    """Each no higher than those after it."""
    return [min(values[i:]) for i in range(len(values))]
