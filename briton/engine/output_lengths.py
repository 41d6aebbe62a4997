"""How long outputs become where nobody has set a limit: learned from those that ended."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque

_REMEMBERED = 256  # outputs
_PRIOR_LENGTH, _PRIOR_COUNT = 256, 8  # tokens; outputs of that length are believed before any has ended
_PERCENTILE = 0.9
_GROWTH, _LEAST = 1.25, 32  # an output longer than all before it is taken to grow so much further


class OutputLengths:
    """The lengths of the latest outputs, in tokens. For one thread."""

    def __init__(self) -> None:
        self._latest = deque([_PRIOR_LENGTH] * _PRIOR_COUNT)
        self._sorted = list(self._latest)

    def observe(self, num_tokens: int) -> None:
        """An output ended by itself at this length."""
        self._latest.append(num_tokens)
        insort(self._sorted, num_tokens)
        if len(self._latest) > _REMEMBERED:
            oldest = self._latest.popleft()
            del self._sorted[bisect_right(self._sorted, oldest) - 1]

    def likely_end(self, num_tokens: int) -> int:
        """The length that nine in ten outputs do not exceed which have become `num_tokens` long; more than that."""
        shorter = bisect_right(self._sorted, num_tokens)
        longer = len(self._sorted) - shorter
        if longer == 0:
            return max(num_tokens + _LEAST, int(num_tokens * _GROWTH))
        return self._sorted[shorter + min(longer - 1, int(_PERCENTILE * longer))]

    @property
    def mean(self) -> float:
        """Tokens of an output."""
        return sum(self._sorted) / len(self._sorted)
