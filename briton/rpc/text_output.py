"""Text out of one sequence, for a gRPC client that asks for it: detokenizer and stop strings, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from briton.text.detokenizer import IncrementalDetokenizer
from briton.text.stop import StopMatcher
from briton.text.tokenizer import Tokenizer


class Piece(NamedTuple):
    """What new tokens gave."""

    text: str  # safe to send
    num_tokens: int  # how many of the tokens belong to the sequence: all, or up to the one that completed a stop string
    stopped: bool  # by a stop string


class TextOutput:
    """The text of one growing sequence. Raises InvalidRequest (field `stop`) for stop strings over the limits."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str], prompt_token_ids: Sequence[int]) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt_token_ids=prompt_token_ids)
        self._matcher = StopMatcher(stops) if stops else None

    def push(self, token_ids: Sequence[int]) -> Piece:
        """The next tokens, without the stop token."""
        if self._matcher is None:
            return Piece(self._detokenizer.push(token_ids), len(token_ids), False)
        parts = []
        for count, token_id in enumerate(token_ids, start=1):
            text, matched = self._matcher.feed(self._detokenizer.push((token_id,)))
            parts.append(text)
            if matched is not None:
                return Piece("".join(parts), count, True)
        return Piece("".join(parts), len(token_ids), False)

    def flush(self) -> tuple[str, bool]:
        """The end of the sequence: the text that was held back, and whether a stop string ended it even now."""
        tail = self._detokenizer.flush()
        if self._matcher is None:
            return tail, False
        text, matched = self._matcher.feed(tail)
        return (text, True) if matched is not None else (text + self._matcher.flush(), False)
