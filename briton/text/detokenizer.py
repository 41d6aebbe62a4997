"""Incremental detokenization: token ids in, whole characters out, as they are generated."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from briton.text.token_bytes import TokenTable
from briton.text.tokenizer import Tokenizer, count_leading_spaces

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_CONTEXT_TOKENS = 6  # that a decoder without bytes sees to the left of new ones
_UNFINISHED = 4  # characters at most that the bytes of one unfinished character are shown as


class IncrementalDetokenizer:
    """The text of one growing sequence. The pushes and the flush joined are `tokenizer.decode` of all ids.

    A character whose bytes are spread over tokens comes out with its last byte; bytes that are not UTF-8 come out as
    U+FFFD, unfinished ones at the flush. With `prompt_token_ids` the text continues that prompt, so that the rule of
    sentencepiece tokenizers about the space at the start of a text does not apply to it.
    """

    def __init__(self, tokenizer: Tokenizer, *, prompt_token_ids: Sequence[int] = ()) -> None:
        self._text: _ByteText | _WindowText
        if tokenizer.table is not None:
            self._text = _ByteText(tokenizer.table, prompt_token_ids)
        else:
            self._text = _WindowText(tokenizer, prompt_token_ids)

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these next tokens complete; "" while a character is unfinished."""
        return self._text.push(token_ids)

    def flush(self) -> str:
        """The end of the text: what is left of an unfinished character, as U+FFFD."""
        return self._text.flush()


class _ByteText:
    """For tokenizers whose tokens have bytes: under a microsecond a token, whatever the length of the text."""

    def __init__(self, table: TokenTable, prompt_token_ids: Sequence[int]) -> None:
        self._table = table
        self._bytes_of = table.bytes_of
        self._size = len(table.bytes_of)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        continues = any(self._adds_text(i) for i in prompt_token_ids)
        self._first = {} if continues else table.first  # until there is a first token
        self._leading_spaces = 0 if continues else table.leading_spaces  # that are still to be dropped

    def push(self, token_ids: Sequence[int]) -> str:
        bytes_of, size = self._bytes_of, self._size
        parts = [bytes_of[i] if 0 <= i < size else b"" for i in token_ids]
        if self._first:
            self._apply_first_rule(token_ids, parts)
        text = self._decoder.decode(b"".join(parts))
        return self._drop_leading_spaces(text) if self._leading_spaces and text else text

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)

    def _adds_text(self, token_id: int) -> bool:
        return 0 <= token_id < self._size and bool(self._bytes_of[token_id])

    def _apply_first_rule(self, token_ids: Sequence[int], parts: list[bytes]) -> None:
        for i, token_id in enumerate(token_ids):
            if self._adds_text(token_id):
                parts[i] = self._first.get(token_id, parts[i])
                self._first = {}
                return

    def _drop_leading_spaces(self, text: str) -> str:
        count = count_leading_spaces(text, self._leading_spaces)
        self._leading_spaces = self._leading_spaces - count if count == len(text) else 0
        return text[count:]


class _WindowText:
    """For all others: decodes the last tokens again with each new one, and sends what is new and finished."""

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._window = [i for i in prompt_token_ids if i not in tokenizer.special_token_ids][-_CONTEXT_TOKENS:]
        self._num_sent = len(tokenizer.decode(self._window))  # characters of the window's text that are out

    def push(self, token_ids: Sequence[int]) -> str:
        self._window.extend(i for i in token_ids if i not in self._tokenizer.special_token_ids)
        text = self._tokenizer.decode(self._window)
        finished = len(text)
        while finished and len(text) - finished < _UNFINISHED and text[finished - 1] == _REPLACEMENT:
            finished -= 1
        new = text[self._num_sent : finished]
        self._num_sent = max(self._num_sent, finished)
        if len(self._window) > 4 * _CONTEXT_TOKENS:
            self._shorten(unsent=text[self._num_sent :])
        return new

    def _shorten(self, unsent: str) -> None:
        """Forget the window's first tokens, if the rest still ends in what is not sent yet."""
        shorter = self._window[-2 * _CONTEXT_TOKENS :]
        text = self._tokenizer.decode(shorter)
        if text.endswith(unsent):
            self._window = shorter
            self._num_sent = len(text) - len(unsent)

    def flush(self) -> str:
        text = self._tokenizer.decode(self._window)
        new, self._num_sent = text[self._num_sent :], len(text)
        return new
