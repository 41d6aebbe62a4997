"""One sequence's way from tokens to text: detokenized, cut at a stop string, its log probabilities in step with it.

The engine's service layer and the gateway both run it on the same tokens, so both find the same end of the text. Knows
no message and no request: a token's log probabilities are whatever the caller hands in beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from typing_extensions import NamedTuple  # a generic one, before Python 3.11

from briton.text.detokenizer import IncrementalDetokenizer
from briton.text.stop import StopMatcher
from briton.text.tokenizer import Tokenizer

LogprobT = TypeVar("LogprobT")


class PlacedLogprob(NamedTuple, Generic[LogprobT]):
    """A token's log probabilities, and where its text begins."""

    start: int  # characters, in the sequence's text
    logprob: LogprobT


class TextDelta(NamedTuple, Generic[LogprobT]):
    """What new tokens add to a sequence's text."""

    text: str  # whole characters, and nothing of a stop string that is or may become complete
    logprobs: Sequence[PlacedLogprob[LogprobT]]  # of the tokens whose text begins in `text`
    num_tokens: int  # of the tokens, those of the sequence: all, or up to the one that completed a stop string
    stopped: bool  # a stop string was completed: the sequence has ended


class SequenceText(Generic[LogprobT]):
    """The text of one growing sequence.

    However the tokens are cut into pushes, the deltas joined are the same text, the same log probabilities and the
    same number of tokens.
    """

    __slots__ = ("_decoded", "_detokenizer", "_matcher", "_pending", "_released", "ended", "num_tokens")

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        logprobs: bool = False,
        prompt_token_ids: Sequence[int] = (),
    ) -> None:
        """With `prompt_token_ids` the text continues that prompt; without, it is a text of its own.

        Raises InvalidRequest (field `stop`) for stop strings over the limits.
        """
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt_token_ids=prompt_token_ids)
        self._matcher = StopMatcher(stop) if stop else None
        # Of tokens whose text is not out yet; None where nobody asked.
        self._pending: deque[PlacedLogprob[LogprobT]] | None = deque() if logprobs else None
        self._decoded = 0  # characters out of the detokenizer
        self._released = 0  # characters out of here
        self.num_tokens = 0
        self.ended = False

    def push(
        self,
        token_ids: Sequence[int],
        logprobs: Sequence[LogprobT] = (),
        *,
        ends: bool = False,
        has_stop_token: bool = False,
    ) -> TextDelta[LogprobT]:
        """Take the sequence's next tokens, with one entry of `logprobs` for each where they are wanted.

        `ends`: they are its last. `has_stop_token`: the last of them is a stop token, which counts and has no text.
        After the end nothing more comes out.
        """
        if self.ended:
            return TextDelta("", (), 0, False)
        with_text = token_ids[:-1] if has_stop_token else token_ids
        if self._matcher is None and self._pending is None:
            text = self._detokenizer.push(with_text)
            if ends:
                text += self._detokenizer.flush()
            self.num_tokens += len(token_ids)
            self.ended = ends
            return TextDelta(text, (), len(token_ids), False)
        return self._push_one_by_one(with_text, len(token_ids), logprobs, ends)

    def _push_one_by_one(
        self, token_ids: Sequence[int], num_tokens: int, logprobs: Sequence[LogprobT], ends: bool
    ) -> TextDelta[LogprobT]:
        """Token by token, to know where each one's text begins, and which one completes a stop string."""
        parts: list[str] = []
        for i, token_id in enumerate(token_ids):
            text = self._detokenizer.push((token_id,))
            if self._pending is not None:
                self._pending.append(PlacedLogprob(self._decoded, logprobs[i]))
            if self._take(text, parts):
                return self._delta(parts, i + 1, stopped=True)
        if ends:
            if self._take(self._detokenizer.flush(), parts):
                return self._delta(parts, num_tokens, stopped=True)
            if self._matcher is not None:
                parts.append(self._matcher.flush())
        return self._delta(parts, num_tokens, ends=ends)

    def _take(self, text: str, parts: list[str]) -> bool:
        """Add what of the text is safe to send; true when it completed a stop string."""
        self._decoded += len(text)
        matched: str | None = None
        if self._matcher is not None:
            text, matched = self._matcher.feed(text)
        parts.append(text)
        return matched is not None

    def _delta(
        self, parts: list[str], num_tokens: int, *, ends: bool = False, stopped: bool = False
    ) -> TextDelta[LogprobT]:
        text = "".join(parts)
        self.num_tokens += num_tokens
        self.ended = ends or stopped
        return TextDelta(text, self._release(len(text), everything=ends), num_tokens, stopped)

    def _release(self, num_characters: int, everything: bool) -> list[PlacedLogprob[LogprobT]]:
        """The entries of tokens whose first character is now out; of a character spread over tokens, all of them."""
        self._released += num_characters
        pending = self._pending
        released: list[PlacedLogprob[LogprobT]] = []
        while pending and (everything or pending[0].start < self._released):
            released.append(pending.popleft())
        return released
