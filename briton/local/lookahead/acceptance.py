"""How often a guess comes true, by how long the match was that it was taken from.

Every token of an output is an observation, drafted or not: what the n-gram index would have said is compared with what
the model said. So the estimate costs nothing, has no bias toward what was tried, and notices when a text that was never
copied begins to be.
"""

from __future__ import annotations

from bisect import bisect_right

# Match lengths 1, 2, 3, 4, 5-6, 7-8, 9-12, 13-16, 17 and more.
_FIRST_LENGTHS = (1, 2, 3, 4, 5, 7, 9, 13, 17)
_BUCKETS = tuple(max(0, bisect_right(_FIRST_LENGTHS, length) - 1) for length in range(_FIRST_LENGTHS[-1] + 1))
_LAST = len(_FIRST_LENGTHS) - 1
# Before anything was seen: about what chat and code with a small model give.
_CONSTANTS = (0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)

_SEQUENCE_MEMORY, _SEQUENCE_PRIOR_WEIGHT = 50, 4  # observations of a bucket
_ENGINE_MEMORY, _ENGINE_PRIOR_WEIGHT = 1000, 20


class AcceptanceRates:
    """Decayed counts of hits and trials. A sequence's lean on its engine's (`prior`), the engine's on constants."""

    def __init__(self, prior: AcceptanceRates | None = None) -> None:
        self._prior = prior
        memory = _ENGINE_MEMORY if prior is None else _SEQUENCE_MEMORY
        self._weight = _ENGINE_PRIOR_WEIGHT if prior is None else _SEQUENCE_PRIOR_WEIGHT
        self._decay = 1 - 1 / memory
        self._hits = [0.0] * len(_FIRST_LENGTHS)
        self._trials = [0.0] * len(_FIRST_LENGTHS)
        self._rates: list[float] | None = None  # by bucket; None: to be computed anew

    def rate(self, match_length: int) -> float:
        """Probability that the next token is the one that followed a match of this length, which is at least 1."""
        return self._by_bucket()[_BUCKETS[match_length] if match_length < len(_BUCKETS) else _LAST]

    def observe(self, match_length: int, hit: bool) -> None:
        """One token came after a match of this length; `hit`: it was the one that the match foretold."""
        bucket = _BUCKETS[match_length] if match_length < len(_BUCKETS) else _LAST
        self._trials[bucket] = self._trials[bucket] * self._decay + 1
        self._hits[bucket] = self._hits[bucket] * self._decay + hit
        self._rates = None
        if self._prior is not None:
            self._prior.observe(match_length, hit)

    def survival(self, match_length: int, num_tokens: int) -> list[float]:
        """Probabilities that the first 1, 2, ... tokens of a continuation are all right: a right token makes the match
        one longer. Non-increasing."""
        rates = self._by_bucket()
        survival: list[float] = []
        alive = 1.0
        for length in range(match_length, match_length + num_tokens):
            alive *= rates[_BUCKETS[length] if length < len(_BUCKETS) else _LAST]
            survival.append(alive)
        return survival

    def _by_bucket(self) -> list[float]:
        """A bucket with few observations leans on its prior, or on its shorter neighbour where that does better."""
        if self._rates is None:
            prior = _CONSTANTS if self._prior is None else self._prior._by_bucket()
            weight, below = self._weight, 0.0
            self._rates = []
            for hits, trials, expected in zip(self._hits, self._trials, prior, strict=True):
                below = (hits + weight * max(expected, below)) / (trials + weight)
                self._rates.append(below)
        return self._rates
