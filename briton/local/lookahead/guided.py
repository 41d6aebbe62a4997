"""Drafts under a grammar: what it forces, and between that what is usual there or what the text suggests.

JSON is mostly form: a key is forced, but the spaces around it are a choice, and a forced run ends there. The choices
are few and of few sorts, and a model makes them alike each time: after a comma a new line and two spaces, after a colon
a space and a quote. Which tokens may come says which sort of place it is, for any schema or pattern: so a place is
known by its mask, and the habits of one request help the next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Seq

import numpy as np

from briton.guidance.guide import Guide
from briton.local.lookahead.acceptance import AcceptanceRates
from briton.local.lookahead.ngram import NgramIndex

_LEAST_GAIN = 0.02  # below it nothing more is proposed
_FEW_WORDS = 128  # of a mask, those with a token in them: more is free text, where nothing is usual
# Places where nothing is learned: there is no choice, there are too many, the guide has failed. Others are hashes.
_FORCED, _FREE, _DEAD = -1, -2, -3

_MAX_PLACES = 4096
# Replayed on 68 outputs of SmolLM2-135M under 8 schemas, half or twice as much of any of these is within 2 %.
_SEQUENCE_DECAY, _ENGINE_DECAY = 0.5, 0.98  # of what is known of a place, for each token chosen there
_PRIOR_WEIGHT = 1.0  # tokens
_FORGOTTEN = 0.01  # tokens


class Habits:
    """Tokens chosen at places where a guide leaves few choices. A sequence's lean on its engine's (`prior`)."""

    def __init__(self, prior: Habits | None = None) -> None:
        self._prior = prior
        self._decay = _ENGINE_DECAY if prior is None else _SEQUENCE_DECAY
        self._counts: OrderedDict[int, dict[int, float]] = OrderedDict()  # of each place, the latest last

    def __len__(self) -> int:
        """Places known, some 4,000 at most."""
        return len(self._counts)

    def usual(self, place: int) -> tuple[int, float]:
        """The likeliest token at a place, and its probability, which is 0 where nothing is known."""
        chances = self._chances(place)
        if not chances:
            return -1, 0.0
        token_id = max(chances, key=chances.__getitem__)
        return token_id, chances[token_id]

    def observe(self, place: int, token_id: int) -> None:
        """This token was chosen there."""
        counts = self._counts.setdefault(place, {})
        self._counts.move_to_end(place)
        for other in [*counts]:
            counts[other] *= self._decay
            if counts[other] < _FORGOTTEN:
                del counts[other]
        counts[token_id] = counts.get(token_id, 0.0) + 1.0
        if len(self._counts) > _MAX_PLACES:
            self._counts.popitem(last=False)
        if self._prior is not None:
            self._prior.observe(place, token_id)

    def _chances(self, place: int) -> dict[int, float]:
        """Of the tokens chosen there. What they lack to 1 is some other token's."""
        chances = {} if self._prior is None else self._prior._chances(place)
        counts = self._counts.get(place)
        if counts:
            total = _PRIOR_WEIGHT + sum(counts.values())
            chances = {token_id: chance * _PRIOR_WEIGHT / total for token_id, chance in chances.items()}
            for token_id, count in counts.items():
                chances[token_id] = chances.get(token_id, 0.0) + count / total
        return chances


class GuidedDrafter:
    """Proposes continuations of one sequence that its guide allows.

    The guide itself is not touched. A copy goes ahead: where it comes to a limit of its parser, which is the end of a
    guide, the output may never come.
    """

    def __init__(self, vocab_size: int, habits: Habits, rates: AcceptanceRates) -> None:
        """`vocab_size`: the width of a logits row. `habits` and `rates` of continuations that were allowed: the
        engine's."""
        self._habits = Habits(habits)
        self._rates = AcceptanceRates(rates)
        self._row = np.zeros((vocab_size + 31) // 32, np.int32)
        self._scout: Guide | None = None  # a copy of the guide, after
        self._num_tokens = 0  # tokens of output,
        self._num_free = 0  # the last of which were free text
        self._chain: list[int] = []  # last proposed,
        self._places: list[int] = []  # where, and the place after it if that is known,
        self._guesses: list[tuple[int, int] | None] = []  # and what the index said there: length of the match, token

    def propose(
        self, guide: Guide, num_tokens: int, index: NgramIndex | None, limit: int
    ) -> tuple[list[int], list[float]]:
        """At most `limit` tokens that the guide allows one after another, and the probability that each is accepted.

        The guide was told `num_tokens` of output, the index the same. No tokens where the guide has failed or ended.
        """
        if self._scout is None or self._num_tokens != num_tokens:
            self._scout, self._num_tokens, self._num_free = guide.copy(), num_tokens, 0
        scout, num_free = self._scout, self._num_free
        chain: list[int] = []
        places: list[int] = []
        guesses: list[tuple[int, int] | None] = []
        gains: list[float] = []
        gain = 1.0
        ahead: list[int] = []  # what the index says comes next, reversed
        match_length = 0
        while not scout.is_terminated():
            if forced := scout.forced_tokens():
                forced = forced[: limit - len(chain)]
                if not forced or not scout.advance(forced):
                    break
                chain += forced
                places += [_FORCED] * len(forced)
                guesses += [None] * len(forced)
                gains += [gain] * len(forced)
                ahead, num_free = [], 0
                continue
            place = self._place(scout)
            places.append(place)
            guesses.append(None)
            if place == _DEAD or len(chain) == limit:
                break
            token_id, chance = (-1, 0.0) if place == _FREE else self._habits.usual(place)
            if index is not None and not ahead:
                found = index.propose(limit - len(chain), chain)
                ahead, match_length = found.token_ids[::-1], found.match_length
            if ahead and self._holds(ahead[-1]):
                # Before free text there is form: a match of form says little of what the text will be.
                agreed = min(match_length, num_free) if place == _FREE else match_length
                guesses[-1] = agreed, ahead[-1]
                rate = self._rates.rate(agreed)
                if rate > chance:
                    token_id, chance = ahead[-1], rate
            gain *= chance
            if gain < _LEAST_GAIN or not scout.advance([token_id]):
                break
            chain.append(token_id)
            gains.append(gain)
            num_free = num_free + 1 if place == _FREE else 0
            match_length += 1
            if ahead and ahead.pop() != token_id:
                ahead = []
        self._chain, self._places, self._guesses = chain, places, guesses
        if places and places[-1] == _DEAD:
            self._scout = None
        else:
            scout.rollback(len(chain))
        return chain, gains

    def observe(self, token_ids: Seq[int]) -> None:
        """The sequence got these tokens since the last proposal."""
        known = 0
        for token_id, place, guess in zip(token_ids, self._places, self._guesses, strict=False):
            known += 1
            self._num_free = self._num_free + 1 if place == _FREE else 0
            if place >= 0:
                self._habits.observe(place, token_id)
            if guess is not None:
                self._rates.observe(guess[0], guess[1] == token_id)
            if known <= len(self._chain) and self._chain[known - 1] != token_id:
                break  # the other places are on another path
        if known < len(token_ids):
            self._num_free = 0
        self._chain, self._places, self._guesses = [], [], []
        self._num_tokens += len(token_ids)
        if self._scout is not None and not self._scout.advance(token_ids):
            self._scout = None

    def num_valid(self, token_ids: Seq[int]) -> int:
        """How many of these tokens the guide of the last proposal would take."""
        scout, n = self._scout, 0
        if scout is not None:
            while n < len(token_ids) and scout.advance(token_ids[n : n + 1]):
                n += 1
            scout.rollback(n)
        return n

    def _place(self, guide: Guide) -> int:
        """What names the sort of place that the guide has come to."""
        guide.fill_bitmask(self._row)
        num_words = np.count_nonzero(self._row)
        if num_words == 0:
            return _DEAD
        return _FREE if num_words > _FEW_WORDS else hash(self._row.tobytes()) & 0x7FFFFFFFFFFFFFFF

    def _holds(self, token_id: int) -> bool:
        """Whether the last place's mask does."""
        return bool(int(self._row[token_id >> 5]) >> (token_id & 31) & 1)
