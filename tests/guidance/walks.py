"""Random walks through a guide's masks: what a model that knows nothing would write."""

from __future__ import annotations

import random

from briton.guidance.guide import Guide
from tests.guidance.vocabularies import TestVocabulary


def random_walk(guide: Guide, vocabulary: TestVocabulary, rng: random.Random, *, max_tokens: int = 400) -> str | None:
    """Follow the masks to the end and give the text; None when max_tokens are not enough.

    After a third of them, tokens that close strings, objects, arrays and words are preferred, so that most walks end.
    """
    token_ids: list[int] = []
    for step in range(max_tokens):
        allowed = vocabulary.allowed(guide)
        assert allowed, f"nothing is allowed after {vocabulary.spell(token_ids)!r}"
        stops = [t for t in allowed if t in vocabulary.stop_token_ids]
        assert set(stops) in (set(), set(vocabulary.stop_token_ids)), "some stop ids are missing"
        if stops and (len(stops) == len(allowed) or rng.random() < 0.3 or step > max_tokens // 3):
            assert guide.advance([rng.choice(stops)])
            assert guide.is_terminated()
            return vocabulary.spell(token_ids).decode()
        choices = [t for t in allowed if t not in stops]
        if step > max_tokens // 3:
            closing = [t for t in choices if (vocabulary.token_bytes[t] or b"")[:1] in b'"}]@.']
            choices = closing or choices
        token_ids.append(rng.choice(choices))
        assert guide.advance(token_ids[-1:]), (
            f"the mask allows {vocabulary.token_bytes[token_ids[-1]]!r}, advance does not"
        )
    return None
