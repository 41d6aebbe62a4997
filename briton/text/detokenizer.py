"""Incremental detokenization: token ids in, whole characters out, as they are generated."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from briton.text.tokenizer import Tokenizer

_REPLACEMENT = "�"


class IncrementalDetokenizer:
    """The text of one growing sequence. The pushes and the flush joined are `tokenizer.decode` of all ids.

    A character whose bytes are spread over tokens comes out with its last byte; bytes that are not UTF-8 come out as
    U+FFFD, unfinished ones at the flush. `prompt_token_ids` makes the text a continuation of a prompt, so that the
    leading-space rule of sentencepiece tokenizers does not apply to it.
    """

    def __init__(self, tokenizer: Tokenizer, *, prompt_token_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        table = tokenizer.table
        self._table = table
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = not any(i not in tokenizer.special_token_ids for i in prompt_token_ids)
        self._spaces_to_strip = table.rule.leading_spaces if table is not None and self._at_start else 0
        # the window of a tokenizer whose tokens have no bytes of their own
        self._window = [i for i in prompt_token_ids if i not in tokenizer.special_token_ids][-_WINDOW_START:]
        self._num_sent = len(self._window)  # ids of the window whose text is out

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these next tokens complete; "" while a character is unfinished."""
        table = self._table
        if table is None:
            return self._push_window(token_ids)
        bytes_of, special = table.bytes_of, table.special
        size = len(bytes_of)
        parts = [bytes_of[i] for i in token_ids if i not in special and 0 <= i < size]
        if self._at_start:
            parts = self._first_parts(token_ids)
        text = self._decoder.decode(b"".join(parts))
        return self._strip(text) if self._spaces_to_strip else text

    def flush(self) -> str:
        """The end of the text: what is left of an unfinished character, as U+FFFD."""
        if self._table is None:
            text = self._window_text(self._window)[len(self._window_text(self._window[: self._num_sent])) :]
            self._num_sent = len(self._window)
            return text
        return self._decoder.decode(b"", final=True)

    def _first_parts(self, token_ids: Sequence[int]) -> list[bytes]:
        assert self._table is not None
        table = self._table
        size = len(table.bytes_of)
        ids = [i for i in token_ids if 0 <= i < size and i not in table.special and i not in table.holes]
        if not ids:
            return []
        self._at_start = False
        return [table.first_bytes(ids[0]), *(table.bytes_of[i] for i in ids[1:])]

    def _strip(self, text: str) -> str:
        start = 0
        while start < len(text) and self._spaces_to_strip:
            if text[start] != " ":
                self._spaces_to_strip = 0
                break
            self._spaces_to_strip -= 1
            start += 1
        return text[start:]

    def _push_window(self, token_ids: Sequence[int]) -> str:
        """Decode the last tokens with and without the new ones; send the difference once it ends in a whole character."""
        special = self._tokenizer.special_token_ids
        self._window.extend(i for i in token_ids if i not in special)
        before = self._window_text(self._window[: self._num_sent])
        after = self._window_text(self._window)
        if len(after) <= len(before) or after.endswith(_REPLACEMENT):
            return ""
        del self._window[: max(0, self._num_sent - _WINDOW_START)]
        self._num_sent = len(self._window)
        return after[len(before) :]

    def _window_text(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids) if token_ids else ""


_WINDOW_START = 6  # tokens of context before the first unsent one: enough for any decoder's look to the left
