"""What a step costs on this machine, by its number of tokens: measured at start, asked before every step."""

from __future__ import annotations

import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

_REPEATS = 3
LONG_CONTEXT = 1024  # tokens, at which a step is timed again


class CostPoint(NamedTuple):
    """A step of one sequence that computes this many tokens at once."""

    num_tokens: int
    seconds: float  # without context
    seconds_per_context_token: float


@dataclass(frozen=True)
class CostCurve:
    """Points ascending in tokens and not descending in seconds."""

    points: tuple[CostPoint, ...]
    fixed_sizes: tuple[int, ...] = ()  # with a graph of their own: free to come and go
    switch_seconds: float = 0.0  # when another number of tokens than last time is computed in the graph of any size
    sizes: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(point.num_tokens for point in self.points))

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

        Of a slow machine only as many sizes as `max_seconds` allow, two at least. A step that seems to cost more than a
        larger one was disturbed: it costs what the larger one does.
        """
        deadline = time.monotonic() + max_seconds
        short: list[float] = []
        long: list[float] = []
        for size in sizes:
            if len(short) >= 2 and time.monotonic() > deadline:
                break
            short.append(_median(time_step, size, 0))
            long.append(_median(time_step, size, long_context))
        for seconds in (short, long):
            for i in reversed(range(len(seconds) - 1)):
                seconds[i] = min(seconds[i], seconds[i + 1])
        points = tuple(
            CostPoint(size, a, max(0.0, b - a) / long_context)
            for size, a, b in zip(sizes, short, long, strict=False)  # sizes that time was left for
        )
        return cls(points, tuple(fixed_sizes), switch_seconds)

    def padded(self, num_tokens: int) -> int:
        """The size that a step with drafts is filled up to."""
        i = bisect_left(self.sizes, num_tokens)
        return self.sizes[i] if i < len(self.sizes) else num_tokens

    def cost(self, num_tokens: int, num_context_tokens: int = 0, num_sequences: int = 1) -> float:
        """Seconds of a step of so many tokens, evenly of `num_sequences` that have `num_context_tokens` together."""
        seconds = self._at(num_tokens, 1)
        if num_context_tokens:
            seconds += num_context_tokens * self._at(max(1, num_tokens // num_sequences), 2)
        return seconds

    def as_dict(self) -> dict[str, Any]:
        """For logs and benchmarks."""
        return {**asdict(self), "points": [point._asdict() for point in self.points]}

    def __str__(self) -> str:
        steps = ", ".join(f"{point.num_tokens}: {point.seconds * 1e3:.1f}" for point in self.points)
        return f"ms of a step by its tokens: {steps}; another size: {self.switch_seconds * 1e3:.1f} more"

    def _at(self, num_tokens: int, column: int) -> float:
        """Between points linear, beyond the last on along the last two, below the first as the first."""
        if num_tokens <= self.sizes[0] or len(self.points) == 1:
            return float(self.points[0][column])
        i = min(bisect_left(self.sizes, num_tokens), len(self.sizes) - 1)
        (x0, y0), (x1, y1) = ((self.sizes[k], self.points[k][column]) for k in (i - 1, i))
        return float(y0 + (y1 - y0) * (num_tokens - x0) / (x1 - x0))


def _median(time_step: Callable[[int, int], float], num_tokens: int, num_context_tokens: int) -> float:
    time_step(num_tokens, num_context_tokens)  # the first of a size prepares it
    return statistics.median(time_step(num_tokens, num_context_tokens) for _ in range(_REPEATS))
