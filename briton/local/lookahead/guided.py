"""Drafts under a grammar: what it forces, and between that what the text suggests and the grammar allows."""

from __future__ import annotations

from briton.guidance.guide import Guide
from briton.local.lookahead.acceptance import AcceptanceRates
from briton.local.lookahead.ngram import NgramIndex

_FORCED = 0.98  # that a forced token is accepted: the mask holds nothing else, but a sequence may end before it
_LEAST = 0.02  # below it nothing more is proposed


def guided_draft(
    guide: Guide, index: NgramIndex | None, limit: int, rates: AcceptanceRates
) -> tuple[list[int], list[float]]:
    """At most `limit` tokens that the guide allows one after another, and the probability that each is accepted.

    The guide is left as it was.
    """
    tokens: list[int] = []
    gains: list[float] = []
    alive = 1.0
    while len(tokens) < limit and alive > _LEAST:
        pieces = guide.forced_tokens()
        chances = [_FORCED] * len(pieces)
        if not pieces and index is not None:
            found = index.propose(limit - len(tokens), tokens)
            pieces = found.token_ids
            chances = [rates.rate(found.match_length + i) for i in range(len(pieces))]
        num_before = len(tokens)
        for token_id, chance in zip(pieces[: limit - num_before], chances, strict=False):
            if not guide.advance([token_id]):
                break
            alive *= chance
            tokens.append(token_id)
            gains.append(alive)
            if chance != _FORCED and guide.forced_tokens()[:1]:
                break  # from here the grammar knows better
        if len(tokens) == num_before:
            break
    guide.rollback(len(tokens))
    return tokens, gains
