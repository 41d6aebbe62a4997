"""What `bench_traffic.py` computes from what it saw: pure functions of times and counts."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between neighbours. Raises ValueError for none at all."""
    if not values:
        raise ValueError("a percentile of nothing")
    return float(np.percentile(values, percent))


def gaps_within(times: Sequence[float], begin: float, end: float) -> list[float]:
    """The gaps between ascending times that overlap [begin, end]."""
    return [later - earlier for earlier, later in pairwise(times) if later > begin and earlier < end]


def retry_ratios(refused: Iterable[tuple[float, float]], accepted: Iterable[tuple[float, float]]) -> list[float]:
    """Retry-After over the wait until a first token of the accepted request that was sent nearest in time.

    `refused`: when it was sent, and what it was told, in seconds; `accepted`: when it was sent, and what it waited.
    """
    waits = sorted(accepted)
    if not waits:
        return []
    sent = [at for at, _ in waits]
    ratios = []
    for at, told in refused:
        right = bisect_left(sent, at)
        near = min((i for i in (right - 1, right) if 0 <= i < len(waits)), key=lambda i: abs(sent[i] - at))
        ratios.append(told / waits[near][1])
    return ratios


def counted(kinds: Iterable[str]) -> dict[str, int]:
    """How many of each, in their order."""
    return dict(sorted(Counter(kinds).items()))
