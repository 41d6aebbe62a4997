"""The best few of a whole vocabulary, without sorting it: exactly what a full sort would give.

Rows are float32 [vocab] without NaN. Of equal values the lowest ids come first.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float32]
Ids = NDArray[np.int64]

_NUM_BLOCKS = 2048
# So many values are sorted in the time of one pass over a row.
_FEW = 4096
# Between the j-th largest of the maxima and the next there are so many values, if blocks are filled by chance.
_PER_MAXIMUM = _NUM_BLOCKS / (_NUM_BLOCKS - np.arange(_NUM_BLOCKS, dtype=np.float64))
_ROOM = 1.02  # for that estimate
_NUM_SAMPLED = 2048
_NUM_HEAVY = 1024  # of the maxima
_DEVIATIONS = 2.5  # of the sample's error, on either side of where its sum crosses
_DOUBT = 0.005  # of its sum, beside


def top_ids(row: Row, k: int) -> Ids:
    """The ids of the k largest values, ascending. All of them where there are fewer.

    The k-th largest of the maxima of blocks is a bound: at least k values reach it, and hardly more.
    """
    size = len(row)
    if k >= size:
        return np.arange(size)
    num_blocks = max(_NUM_BLOCKS, 4 * k)
    if 2 * num_blocks > size:
        return _cut(np.arange(size), row, k)
    ids = np.flatnonzero(row >= np.partition(_maxima(row, num_blocks), num_blocks - k)[num_blocks - k])
    return _cut(ids, row.take(ids), k)


def nucleus(mass: Row, top_p: float) -> Ids:
    """Ids of the fewest tokens that hold `top_p` of the mass (Holtzman et al. 2020), those that are as likely as the
    last after the others. `mass` has 1 as its largest.

    The maxima of blocks say down to where it should be enough, unless the mass is spread over more tokens than there
    are blocks.
    """
    total = float(mass.sum())
    target = top_p * total
    ids: Ids | None = None
    candidates, maxima = mass, None
    if len(mass) >= 2 * _NUM_BLOCKS:
        maxima = np.sort(_maxima(mass, _NUM_BLOCKS))[::-1]
        enough = int(np.searchsorted(np.cumsum(maxima * _PER_MAXIMUM), _ROOM * target))
        if enough < _NUM_BLOCKS - 1:
            ids = np.flatnonzero(mass >= maxima[enough])
            candidates = mass.take(ids)
            in_candidates = float(candidates.sum(dtype=np.float64))
            if in_candidates < target:
                ids, candidates = None, mass
            else:
                total, maxima = in_candidates, None
    last, num_equals = _crossing(candidates, target, total, maxima)
    kept = np.flatnonzero(candidates > last)
    if num_equals:
        kept = np.concatenate([kept, np.flatnonzero(candidates == last)[:num_equals]])
    return kept if ids is None else ids.take(kept)


def _maxima(row: Row, num_blocks: int) -> Row:
    """Of each block, which are every `num_blocks`-th value; a rest at the end is left out."""
    maxima: Row = row[: len(row) - len(row) % num_blocks].reshape(-1, num_blocks).max(axis=0)
    return maxima


def _crossing(values: Row, target: float, total: float, maxima: Row | None) -> tuple[np.float32, int]:
    """Where the sum of `values`, the largest first, reaches `target`: the value there, and how many that are equal to
    it are needed. The smallest where it is never reached. `total` is about the sum of all;
    `maxima` are of its blocks, descending.

    Sums are float64, which is exact for float32 of like size, so that their order says nothing.
    """
    taken = 0.0  # the sum of what is larger than all `values`
    while len(values) > _FEW:
        sample = np.sort(values[:: len(values) // _NUM_SAMPLED])[::-1]
        heavy = 0.0  # the sum of the largest, which a sample would miss
        if maxima is not None and (light := sample[sample < maxima[_NUM_HEAVY]]).size:
            heavy, sample = float((maxima[:_NUM_HEAVY] * _PER_MAXIMUM[:_NUM_HEAVY]).sum()), light
        maxima = None
        high, low = _bracket(sample, target - taken - heavy, total - heavy)
        is_above = values > high
        sum_above = float((values * is_above).sum(dtype=np.float64))
        if taken + sum_above >= target and sum_above > 0:
            values, total = values.take(np.flatnonzero(is_above)), sum_above
            continue
        between = values.take(np.flatnonzero((values >= low) ^ is_above))
        sum_between = float(between.sum(dtype=np.float64))
        if taken + sum_above + sum_between < target and low > values.min():
            values = values.take(np.flatnonzero(values < low))
            taken, total = taken + sum_above + sum_between, total - sum_above - sum_between
        elif len(between) < len(values):
            values, taken, total = between, taken + sum_above, sum_between
        else:
            break  # all alike
    descending = np.sort(values)[::-1]
    sums = np.cumsum(descending, dtype=np.float64) + taken
    at = min(int(np.searchsorted(sums, target)), len(descending) - 1)
    return descending[at], at + 1 - int(np.searchsorted(-descending, -descending[at]))


def _bracket(sample: Row, target: float, total: float) -> tuple[np.float32, np.float32]:
    """Two values: between them the sum of all, `total`, should reach `target`. `sample` is some of all, descending."""
    sums = np.cumsum(sample, dtype=np.float64)
    if sums[-1] == 0:
        return sample[0], sample[0]
    share = min(max(target / total, 0.0), 1.0) if total > 0 else 1.0
    squares = np.cumsum(np.square(sample, dtype=np.float64))
    before = squares[min(int(np.searchsorted(sums, share * sums[-1])), len(sample) - 1)]
    # Of a share of the sum: what is above the guess and what is below both err.
    variance = (1 - share) ** 2 * before + share**2 * (squares[-1] - before)
    error = _DEVIATIONS * math.sqrt(variance) + _DOUBT * sums[-1]
    first, last = np.searchsorted(sums, [share * sums[-1] - error, share * sums[-1] + error])
    return sample[min(first, len(sample) - 1)], sample[min(last, len(sample) - 1)]


def _cut(ids: Ids, values: Row, k: int) -> Ids:
    """The k of `ids` with the largest values, ascending."""
    surplus = len(ids) - k
    if surplus <= 0:
        return ids
    last = np.partition(values, surplus)[surplus]
    likelier = np.flatnonzero(values > last)
    as_likely = np.flatnonzero(values == last)[: k - len(likelier)]
    kept = np.concatenate([likelier, as_likely])
    kept.sort()
    best: Ids = ids[kept]
    return best
