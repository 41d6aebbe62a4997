"""Words of a prompt where the output spells them with other tokens.

Most vocabularies have a word's space in its first token. A value of JSON stands right behind a quote: `Lisbon` is `L`,
`is`, `bon` there, and ` Lisbon` in the prompt. So an index of tokens does not know it, and a search for its text does.
"""

from __future__ import annotations

from collections.abc import Sequence

from briton.guidance.vocabulary import Vocabulary

_MAX_TOKENS = 16_384  # of a prompt are searched, its last: a search takes 10 us
_BYTES_PER_TOKEN = 6  # of the text that is spelled anew


class PromptRespelling:
    """A text, by what follows in it."""

    def __init__(self, vocabulary: Vocabulary, token_ids: Sequence[int]) -> None:
        """Tokens that are no text end a line."""
        self._vocabulary = vocabulary
        token_bytes = vocabulary.token_bytes
        self._text = b"".join([token_bytes[t] or b"\n" for t in token_ids[-_MAX_TOKENS:]]) + b"\n"

    def continuation(self, token_ids: Sequence[int], limit: int) -> list[int]:
        """About `limit` tokens, of whole words of one line, that follow where the text has these after a space, last
        of all; none where it has not, or where they would be other tokens, too, with what follows them."""
        said = self._vocabulary.spell(token_ids)
        at = self._text.rfind(b" " + said) if said else -1
        if at < 0 or said is None:
            return []
        end = at + 1 + len(said)
        line, newline, _ = self._text[end : end + _BYTES_PER_TOKEN * limit].partition(b"\n")
        if not newline:
            line = line.rpartition(b" ")[0]
        try:
            spelled = self._vocabulary.tokenize((said + line).decode())
        except UnicodeDecodeError:
            return []
        num_bytes = 0
        for i, token_id in enumerate(spelled):
            if num_bytes == len(said):
                return spelled[i:]
            num_bytes += len(self._vocabulary.token_bytes[token_id] or b"")
        return []
