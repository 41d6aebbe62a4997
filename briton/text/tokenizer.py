"""Tokenizer: text to token ids and back, from the tokenizer.json of an engine directory or a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from typing_extensions import Self

from briton.errors import BuildError, InvalidRequest, Unsupported
from briton.text.token_bytes import table_of

TOKENIZER_FILE = "tokenizer.json"
# Characters that take about a millisecond (SmolLM2's, measured). An event loop leaves more to a thread, and goes on.
LONG_TEXT = 2048


class Tokenizer:
    """Immutable and safe to share between threads.

    Decoding is defined on bytes: the UTF-8 text of the tokens' bytes joined, control tokens left out, each maximal
    subpart that is not UTF-8 becoming one U+FFFD (Unicode 3.9), and the leading space that sentencepiece adds taken
    away. A tokenizer of neither family that `briton.text.token_bytes` knows is decoded by its own library.
    """

    def __init__(self, backend: tokenizers.Tokenizer, hash: str = "") -> None:
        # A tokenizer.json may carry the limits its training used; a prompt is neither cut nor filled up here.
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.hash = hash  # sha256 of tokenizer.json, hex
        self.table = table_of(backend)  # None: of neither family
        names = self.table.names.values() if self.table is not None else ()
        # bytes; None: unknown
        self.longest_token = max(map(len, (*self.table.bytes_of, *names))) if self.table is not None else None
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1  # highest id + 1
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
        """Token ids of a text; 100,000 characters take some 40 ms, without the interpreter lock.

        The names of control tokens in the text become those tokens. `add_special_tokens` puts the model's BOS or EOS
        where its tokenizer wants them; a chat template has written them already. Raises InvalidRequest naming `field`
        for text that is not Unicode (half of a surrogate pair, which JSON can spell).
        """
        (ids,) = self.encode_batch([text], add_special_tokens, field=field)
        return ids

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = False, *, field: str) -> list[list[int]]:
        """Token ids of several texts, each by itself; otherwise as `encode`."""
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                surrogate = f"U+{ord(text[error.start]):04X}"
                raise InvalidRequest(
                    f"{field} is not Unicode text: character {error.start} is {surrogate}, half of a surrogate pair",
                    field,
                ) from None
        # The batch call releases the lock, which `encode` does not, and leaves out the offsets.
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; ids that no token has are left out."""
        table = self.table
        if table is None:
            return self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        bytes_of, size = table.bytes_of, len(table.bytes_of)
        ids = [i for i in token_ids if 0 <= i < size and (bytes_of[i] or i in table.names)]
        if skip_special_tokens:
            ids = [i for i in ids if i not in table.names]
        if not ids:
            return ""
        parts = [bytes_of[i] or table.names[i] for i in ids]
        parts[0] = table.first.get(ids[0], parts[0])
        text = b"".join(parts).decode("utf-8", "replace")
        return text[count_leading_spaces(text, table.leading_spaces) :]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, alone; of a control token, its name; of an id that no token has, none."""
        if token_id < 0:
            return b""
        if self.table is None:
            return self.backend.decode([token_id], skip_special_tokens=False).encode()
        if token_id >= len(self.table.bytes_of):
            return b""
        return self.table.bytes_of[token_id] or self.table.names.get(token_id, b"")

    def vocabulary_bytes(self, vocab_size: int) -> list[bytes | None]:
        """What each token adds to a text, [vocab_size], the width of a logits row; None for control tokens and holes.

        Raises Unsupported when the tokenizer is of no family whose tokens have bytes.
        """
        if self.table is None:
            raise Unsupported(
                "guided decoding needs a byte-level or sentencepiece tokenizer, which this model's is not"
            )
        present: list[bytes | None] = [content or None for content in self.table.bytes_of[:vocab_size]]
        return present + [None] * (vocab_size - len(present))


def count_leading_spaces(text: str, limit: int) -> int:
    """How many spaces `text` begins with, counted up to `limit`."""
    count = 0
    while count < limit and text.startswith(" ", count):
        count += 1
    return count
