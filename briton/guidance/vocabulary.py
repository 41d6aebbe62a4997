"""What a guide knows of a tokenizer: the bytes of each token, the stop ids, the canonical tokens of a text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

logger = logging.getLogger(__name__)

# Encoded before a text whose own tokenization begins with a space that is not in it (sentencepiece's dummy prefix):
# characters that hardly any vocabulary merges with others.
_MARKERS = ("\x02", "\n")


class Vocabulary:
    """Bytes of every token id of a logits row; None where an id is no text: control tokens, holes, stop ids.

    A stop id always ends a sequence, so it never counts as text, whatever its bytes are.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes | None],
        *,
        vocab_size: int,
        stop_token_ids: Iterable[int],
        encode: Callable[[str], list[int]],
    ) -> None:
        """`vocab_size` is the width of a logits row: ids past `token_bytes` are holes. ValueError on ids outside it."""
        self.stop_token_ids = tuple(sorted(set(stop_token_ids)))
        if any(not 0 <= token_id < vocab_size for token_id in self.stop_token_ids):
            raise ValueError(f"stop_token_ids {self.stop_token_ids} are outside the vocabulary of {vocab_size}")
        if len(token_bytes) > vocab_size:
            raise ValueError(f"token_bytes has {len(token_bytes)} entries; the vocabulary has {vocab_size}")
        stops = frozenset(self.stop_token_ids)
        texts = [None if i in stops else (data or None) for i, data in enumerate(token_bytes)]
        self.token_bytes: tuple[bytes | None, ...] = (*texts, *([None] * (vocab_size - len(texts))))
        self.vocab_size = vocab_size
        self.stops = stops
        self._encode = encode

    @property
    def num_words(self) -> int:
        """int32 words in a mask row."""
        return (self.vocab_size + 31) // 32

    def tokenize(self, text: str) -> list[int]:
        """The canonical tokens of `text`; their bytes are exactly its UTF-8.

        Longest matches where the tokenizer gives none, empty when the vocabulary cannot spell it. Never raises:
        llguidance calls it from inside a parser.
        """
        data = text.encode()
        try:
            token_ids = self._encode(text)
            if self.spell(token_ids) == data:
                return token_ids
            for marker in _MARKERS:
                after_marker = self._strip(marker, self._encode(marker + text))
                if after_marker is not None and self.spell(after_marker) == data:
                    return after_marker
        except Exception:
            logger.exception("the tokenizer failed on %r", text)
        return self._longest_matches(data)

    def spell(self, token_ids: Iterable[int]) -> bytes | None:
        """The bytes of these tokens; None when one of them is no text."""
        texts = [self.token_bytes[t] if 0 <= t < self.vocab_size else None for t in token_ids]
        known = [t for t in texts if t is not None]
        return b"".join(known) if len(known) == len(texts) else None

    def _strip(self, marker: str, token_ids: list[int]) -> list[int] | None:
        """The tokens after those that spell the marker, or a space and it; None when one token spans its end."""
        for k in range(1, min(len(token_ids), 4) + 1):
            if self.spell(token_ids[:k]) in (marker.encode(), b" " + marker.encode()):
                return token_ids[k:]
        return None

    def _longest_matches(self, data: bytes) -> list[int]:
        token_ids: list[int] = []
        at = 0
        while at < len(data):
            for end in range(min(len(data), at + self._longest), at, -1):
                token_id = self._id_of.get(data[at:end])
                if token_id is not None:
                    token_ids.append(token_id)
                    at = end
                    break
            else:
                return []
        return token_ids

    @cached_property
    def _id_of(self) -> dict[bytes, int]:
        return {data: i for i, data in reversed(tuple(enumerate(self.token_bytes))) if data is not None}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._id_of), default=0)
