"""What a guide knows of a tokenizer: the bytes of each token, the stop ids, the canonical tokens of a text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

# Encoded before a text whose own tokenization begins with a space that is not in it (sentencepiece's dummy prefix):
# characters that hardly any vocabulary merges with others.
_MARKERS = ("\x02", "\n")

# What is forced is asked for again at every token of it: of a long text its beginning will do. Where it is cut, its
# tokens may be others than they would be.
_LONGEST_TEXT = 512  # characters
_UNSURE = 64  # bytes at the end of a text that was cut


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
        """The canonical tokens of `text`, or of the beginning of a long one; their bytes are exactly its UTF-8.

        Longest matches where the tokenizer gives none, empty when the vocabulary cannot spell it. Never raises:
        llguidance calls it from inside a parser.
        """
        if len(text) <= _LONGEST_TEXT:
            return self._tokenize(text)
        token_ids = self._tokenize(text[:_LONGEST_TEXT])
        unsure = 0
        while len(token_ids) > 1 and unsure < _UNSURE:
            unsure += len(self.token_bytes[token_ids.pop()] or b"")
        return token_ids

    def _tokenize(self, text: str) -> list[int]:
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
    def unspellable(self) -> str:
        """Characters that no tokens spell, as ranges of a character class; empty when there are none.

        A character is spelled by a token that it is part of, or by one for each of its bytes.
        """
        return "".join(f"\\x{{{first:X}}}-\\x{{{last:X}}}" for first, last in self._unspelled)

    def can_spell(self, text: str) -> bool:
        """Whether no character of the text is `unspellable`."""
        points = [ord(character) for character in set(text)]
        return not any(first <= point <= last for first, last in self._unspelled for point in points)

    @cached_property
    def shortest_first(self) -> NDArray[np.int64]:
        """Ids of tokens that are text; of equally long ones, those that begin with brackets and letters first."""
        texts = [(len(data), -data[0], i) for i, data in enumerate(self.token_bytes) if data is not None]
        return np.array([i for *_, i in sorted(texts)], np.int64)

    @cached_property
    def _unspelled(self) -> list[tuple[int, int]]:
        return _ranges(_unspelled({data for data in self.token_bytes if data is not None}))

    @cached_property
    def _id_of(self) -> dict[bytes, int]:
        return {data: i for i, data in reversed(tuple(enumerate(self.token_bytes))) if data is not None}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._id_of), default=0)


def _unspelled(tokens: set[bytes]) -> NDArray[np.int64]:
    """Code points of characters whose bytes are not all tokens, and which are in none; ascending."""
    has_byte = np.array([bytes([byte]) in tokens for byte in range(256)])
    unspelled: list[NDArray[np.int64]] = []
    for first, last, size in ((0, 0x7F, 1), (0x80, 0x7FF, 2), (0x800, 0xFFFF, 3), (0x10000, 0x10FFFF, 4)):
        points = np.arange(first, last + 1)
        points = points[(points < 0xD800) | (points > 0xDFFF)]  # halves of surrogate pairs are no characters
        lead = (points >> 6 * (size - 1)) | (0, 0xC0, 0xE0, 0xF0)[size - 1]
        spelled = has_byte[lead]
        for place in range(size - 1):
            spelled = spelled & has_byte[0x80 | points >> 6 * place & 0x3F]
        unspelled.append(points[~spelled])
    in_tokens = {ord(character) for token in tokens for character in token.decode(errors="ignore")}
    found = np.concatenate(unspelled)
    return found[~np.isin(found, list(in_tokens))]


def _ranges(points: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ascending numbers as (first, last) of runs."""
    if not points.size:
        return []
    breaks = np.flatnonzero(np.diff(points) > 1)
    first, last = points[np.concatenate([[0], breaks + 1])], points[np.concatenate([breaks, [-1]])]
    return list(zip(first.tolist(), last.tolist(), strict=True))
