"""Tokenizer: text to token ids and back, from the tokenizer.json of an engine directory or a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from typing_extensions import Self

from briton.errors import BuildError, InvalidRequest
from briton.text.token_bytes import TokenTable, table_of

TOKENIZER_FILE = "tokenizer.json"


class Tokenizer:
    """Immutable and safe to share between threads; `encode` and `decode` of a long text release the interpreter lock.

    Decoding is defined on bytes: the UTF-8 text of the tokens' bytes joined, control tokens left out, each maximal
    subpart that is not UTF-8 becoming one U+FFFD (Unicode 3.9), and the leading space that sentencepiece adds taken
    away. A tokenizer of neither family that `briton.text.token_bytes` knows is decoded by its own library.
    """

    def __init__(self, backend: tokenizers.Tokenizer, hash: str) -> None:
        # A tokenizer.json may carry the limits its training used; a prompt is neither cut nor filled up here.
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.hash = hash  # sha256 of tokenizer.json, hex
        self.table: TokenTable | None = table_of(backend)
        if self.table is not None:
            self.vocab_size = len(self.table.bytes_of)  # the highest id + 1; the model's logits may be wider
        else:
            self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.special_token_ids = frozenset(i for i, t in backend.get_added_tokens_decoder().items() if t.special)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read `directory`/tokenizer.json. Raises BuildError when it is missing or not a tokenizer."""
        path = Path(directory) / TOKENIZER_FILE
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise BuildError(f"{directory} has no {TOKENIZER_FILE}") from None
        try:
            backend = tokenizers.Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises plain Exception
            raise BuildError(f"{path} is not a tokenizer: {error}") from None
        return cls(backend, hashlib.sha256(content).hexdigest())

    def encode(self, text: str, add_special_tokens: bool = False, *, field: str = "prompt") -> list[int]:
        """Token ids of a text. The names of control tokens in it become those tokens.

        `add_special_tokens` puts the model's BOS (or EOS) where its tokenizer wants them; a chat template has written
        them already. Raises InvalidRequest naming `field` for text that is not Unicode (a lone surrogate, which JSON
        can spell).
        """
        try:
            ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        except UnicodeEncodeError as error:
            surrogate = f"U+{ord(text[error.start]):04X}"
            raise InvalidRequest(
                f"{field} is not Unicode text: character {error.start} is {surrogate}, half of a surrogate pair", field
            ) from None
        return ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids that no token has are left out."""
        table = self.table
        if table is None:
            text: str = self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
            return text
        size = len(table.bytes_of)
        ids = [i for i in token_ids if 0 <= i < size and i not in table.holes]
        if skip_special_tokens:
            ids = [i for i in ids if i not in table.special]
        if not ids:
            return ""
        parts = [table.bytes_of[i] for i in ids]
        parts[0] = table.first_bytes(ids[0])
        return strip_leading(b"".join(parts).decode("utf-8", "replace"), table.rule.leading_spaces)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, alone; of a control token, its name; of an id that no token has, none."""
        if self.table is not None:
            return self.table.bytes_of[token_id] if 0 <= token_id < self.vocab_size else b""
        return (self.backend.id_to_token(token_id) or "").encode()

    def vocabulary_bytes(self, vocab_size: int) -> list[bytes | None]:
        """What each token adds to a text, [vocab_size], the width of a logits row; None for control tokens and holes.

        Raises BuildError when the tokenizer is of no family whose tokens have bytes.
        """
        table = self.table
        if table is None:
            raise BuildError(
                "constrained decoding needs a byte-level or sentencepiece tokenizer, and this model has neither"
            )
        present: list[bytes | None] = [
            None if i in table.special or not content else content for i, content in enumerate(table.bytes_of)
        ]
        return present[:vocab_size] + [None] * (vocab_size - len(present))


def strip_leading(text: str, spaces: int) -> str:
    """`text` without its first spaces, at most so many."""
    start = 0
    while start < spaces and text.startswith(" ", start):
        start += 1
    return text[start:]
