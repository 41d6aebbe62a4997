"""Drafts under a grammar: what it forces, and between that what is usual there or what the text suggests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from briton.guidance.guide import Guide
from briton.local.lookahead.acceptance import AcceptanceRates
from briton.local.lookahead.ngram import NgramIndex
from briton.local.lookahead.prompt_respelling import PromptRespelling
from briton.local.lookahead.token_priors import TokenPriors

_LEAST_GAIN = 0.05  # below it nothing more is proposed
_FEW_WORDS = 128  # of a mask, those with a token in them: more is free text, where nothing is usual
_MAX_FREE = 32  # tokens of free text that are known of, the last
_MAX_BEGINNING = 8  # of them, after which the index knows the words that follow
# Kinds of places without a usual token: there is no choice, there are too many, the guide has failed.
_FORCED, _FREE, _DEAD = -1, -2, -3


class GuidedRates:
    """How drafts under guides do. A sequence's lean on its engine's (`prior`)."""

    def __init__(self, prior: GuidedRates | None = None) -> None:
        self.token_priors: TokenPriors = TokenPriors(None if prior is None else prior.token_priors)
        # By the length of the match, where the guide allowed what followed it; by the tokens of free text before.
        self.index: AcceptanceRates = AcceptanceRates(None if prior is None else prior.index)
        self.respelling: AcceptanceRates = AcceptanceRates(None if prior is None else prior.respelling)


class _Guess(NamedTuple):
    rates: AcceptanceRates
    length: int  # of the match
    token_id: int


class _Place(NamedTuple):
    """Where a token is or would be drafted."""

    kind: int  # below 0 one of those above, else a hash of the mask
    guesses: list[_Guess]


class GuidedDrafter:
    """Proposes continuations of one sequence that its guide allows.

    The guide itself is not touched. A copy goes ahead: where it comes to a limit of its parser, which is the end of a
    guide, the output may never come.
    """

    def __init__(self, vocab_size: int, rates: GuidedRates, prompt: Sequence[int] = ()) -> None:
        """`vocab_size`: the width of a logits row; `rates`: the engine's; `prompt`: what the output may take words
        from."""
        self._rates = GuidedRates(rates)
        self._row = np.zeros((vocab_size + 31) // 32, np.int32)
        self._prompt = prompt
        self._respelling: PromptRespelling | None = None  # made when first asked
        self._scout: Guide | None = None  # a copy of the guide, after
        self._num_tokens = 0  # tokens of output,
        self._free: list[int] = []  # the last of which were free text, these
        self._chain: list[int] = []  # last proposed,
        self._places: list[_Place] = []  # where, and the place after it if that is known

    def propose(
        self, guide: Guide, num_tokens: int, index: NgramIndex | None, limit: int
    ) -> tuple[list[int], list[float]]:
        """At most `limit` tokens that the guide allows one after another, and the probability that each is accepted.

        The guide was told `num_tokens` of output, the index the same. No tokens where the guide has failed or ended.
        """
        if self._scout is None or self._num_tokens != num_tokens:
            self._scout, self._num_tokens, self._free = guide.copy(), num_tokens, []
        scout, free = self._scout, self._free
        chain: list[int] = []
        places: list[_Place] = []
        gains: list[float] = []
        gain = 1.0
        indexed: list[int] = []  # what the index says comes next, reversed
        worded: list[int] = []  # and what the prompt's words do
        match_length = 0
        while not scout.is_terminated():
            scout.fill_bitmask(self._row)
            num_words = int(np.count_nonzero(self._row))
            if num_words == 1 and (forced := scout.forced_tokens()):  # asked where it may be: it costs as the mask does
                forced = forced[: limit - len(chain)]
                if not forced or not scout.advance(forced):
                    break
                chain += forced
                gains += [gain] * len(forced)
                places += [_Place(_FORCED, [])] * len(forced)
                indexed, worded, free = [], [], []
                continue
            place = _Place(self._place_kind(num_words), [])
            places.append(place)
            if place.kind == _DEAD or len(chain) == limit:
                break
            is_free = place.kind == _FREE
            if index is not None and not indexed:
                found = index.propose(limit - len(chain), chain)
                indexed, match_length = found.token_ids[::-1], found.match_length
            if indexed and self._holds(indexed[-1]):
                # Before free text there is form: a match of form says little of what the text will be.
                agreed = min(match_length, len(free)) if is_free else match_length
                place.guesses.append(_Guess(self._rates.index, agreed, indexed[-1]))
            if is_free and 0 < len(free) <= _MAX_BEGINNING:
                worded = worded or self._continued_word(scout, free, limit - len(chain))
                if worded and self._holds(worded[-1]):
                    place.guesses.append(_Guess(self._rates.respelling, len(free), worded[-1]))
            token_id, chance = (-1, 0.0) if is_free else self._rates.token_priors.usual(place.kind)
            for guess in place.guesses:
                rate = guess.rates.rate(guess.length)
                if rate > chance:
                    token_id, chance = guess.token_id, rate
            gain *= chance
            if gain < _LEAST_GAIN or not scout.advance([token_id]):
                break
            chain.append(token_id)
            gains.append(gain)
            free = _extended(free, token_id) if is_free else []
            match_length += 1
            if indexed and indexed.pop() != token_id:
                indexed = []
            if worded and worded.pop() != token_id:
                worded = []
        self._chain, self._places = chain, places
        if places and places[-1].kind == _DEAD:
            self._scout = None
        else:
            scout.rollback(len(chain))
        return chain, gains

    def observe(self, token_ids: Sequence[int]) -> None:
        """The sequence got these tokens since the last proposal."""
        known = 0
        for token_id, place in zip(token_ids, self._places, strict=False):
            known += 1
            self._free = _extended(self._free, token_id) if place.kind == _FREE else []
            if place.kind >= 0:
                self._rates.token_priors.observe(place.kind, token_id)
            for guess in place.guesses:
                guess.rates.observe(guess.length, guess.token_id == token_id)
            if known <= len(self._chain) and self._chain[known - 1] != token_id:
                break  # the other places are on another path
        if known < len(token_ids):
            self._free = []
        self._chain, self._places = [], []
        self._num_tokens += len(token_ids)
        if self._scout is not None and not self._scout.advance(token_ids):
            self._scout = None

    def num_valid(self, token_ids: Sequence[int]) -> int:
        """How many of these tokens the guide of the last proposal would take."""
        scout, n = self._scout, 0
        if scout is not None:
            while n < len(token_ids) and scout.advance(token_ids[n : n + 1]):
                n += 1
            scout.rollback(n)
        return n

    def _continued_word(self, guide: Guide, free: Sequence[int], limit: int) -> list[int]:
        if self._respelling is None:
            self._respelling = PromptRespelling(guide.vocabulary, self._prompt)
        return self._respelling.continuation(free, limit)[::-1]

    def _place_kind(self, num_words: int) -> int:
        """What names the sort of place whose mask has tokens in so many words."""
        if num_words == 0:
            return _DEAD
        return _FREE if num_words > _FEW_WORDS else hash(self._row.tobytes()) & 0x7FFFFFFFFFFFFFFF

    def _holds(self, token_id: int) -> bool:
        """Whether the last place's mask does."""
        return bool(int(self._row[token_id >> 5]) >> (token_id & 31) & 1)


def _extended(free: list[int], token_id: int) -> list[int]:
    return [*free[1 - _MAX_FREE :], token_id]
