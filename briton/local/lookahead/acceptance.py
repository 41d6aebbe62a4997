"""How often a guess comes true, by how long a match it was taken from."""

from __future__ import annotations

from itertools import accumulate
from operator import itemgetter, mul

# Match lengths 1, 2, 3, 4, 5-6, 7-8, 9-12, 13-16, 17 and more; of each length the bucket, 0 counting as 1.
_BUCKETS = (0, 0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 8)
_LONGEST = len(_BUCKETS) - 1
_spread = itemgetter(*_BUCKETS)

# Before anything was seen: 20,000 tokens of SmolLM2-135M's on chat, code, edits, extraction and quotes, rounded.
_TYPICAL_RATES = [0.25, 0.5, 0.65, 0.7, 0.78, 0.84, 0.87, 0.93, 0.97]

# Chosen on the same tokens by the likelihood of what came: memory 16 to for ever, weight 4 to 32 are all within 2 %.
_PRIOR_WEIGHT = 8.0  # observations
_SEQUENCE_MEMORY = 24.0  # observations of a bucket; their mean varies as a plain mean of twice as many does
_ENGINE_MEMORY = 2000.0


class AcceptanceRates:
    """P(the next token is the one that followed the match | tokens of the match), learned from every token.

    Hits and trials of each bucket of lengths fade with every observation there, so that rates follow the text. They
    are shrunk toward those of `prior`, the engine's, which hears of each observation too and forgets more slowly; and
    the engine's toward constants. A bucket is shrunk toward its shorter neighbour's rate where that is higher, unless
    the prior knows better: a longer match is never rated below a shorter one for mere lack of observations.

    How a match came about is left out: given its length, the guesses before it (a miss in a long match, a run of hits)
    told nothing more on the tokens above.
    """

    def __init__(self, prior: AcceptanceRates | None = None) -> None:
        self._prior = prior
        self._decay = 1 - 1 / (_ENGINE_MEMORY if prior is None else _SEQUENCE_MEMORY)
        self._hits = [0.0] * len(_TYPICAL_RATES)
        self._trials = [0.0] * len(_TYPICAL_RATES)
        self._is_stale = True
        self._leant_on = _TYPICAL_RATES  # the prior's rates that these were computed from
        self._by_bucket = _TYPICAL_RATES
        self._by_length: tuple[float, ...] = _spread(_TYPICAL_RATES)

    def observe(self, match_length: int, hit: bool) -> None:
        """A token came after a match of so many tokens: was it the one that followed there? Told of tokens that
        nobody drafted too, so that what is not tried is not forgotten."""
        bucket = _BUCKETS[match_length] if match_length < _LONGEST else -1
        self._hits[bucket] = self._hits[bucket] * self._decay + hit
        self._trials[bucket] = self._trials[bucket] * self._decay + 1
        self._is_stale = True
        if self._prior is not None:
            self._prior.observe(match_length, hit)

    def rate(self, match_length: int) -> float:
        """Strictly between 0 and 1."""
        self._refresh()
        return self._by_length[min(match_length, _LONGEST)]

    def survival(self, match_length: int, num_tokens: int) -> list[float]:
        """The probability that the first token of a draft is accepted, the first two, ..., all `num_tokens`: an
        accepted token makes the match one longer."""
        self._refresh()
        rates = self._by_length[min(match_length, _LONGEST) :][:num_tokens]
        rates += self._by_length[-1:] * (num_tokens - len(rates))
        return list(accumulate(rates, mul))

    def _refresh(self) -> list[float]:
        """The rates by bucket; a new list when they changed."""
        leans_on = _TYPICAL_RATES if self._prior is None else self._prior._refresh()
        if self._is_stale or leans_on is not self._leant_on:
            rates = []
            shorter = shorter_prior = 0.0
            for hits, trials, prior in zip(self._hits, self._trials, leans_on, strict=True):
                toward = shorter if shorter > prior >= shorter_prior else prior
                shorter = (hits + _PRIOR_WEIGHT * toward) / (trials + _PRIOR_WEIGHT)
                shorter_prior = prior
                rates.append(shorter)
            self._is_stale, self._leant_on = False, leans_on
            self._by_bucket, self._by_length = rates, _spread(rates)
        return self._by_bucket
