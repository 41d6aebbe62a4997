"""One sequence's way from tokens to text: detokenized, cut at a stop string, its log probabilities in step with it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from briton.text.detokenizer import IncrementalDetokenizer
from briton.text.stop import StopMatcher
from briton.text.tokenizer import Tokenizer
from briton.v1 import engine_pb2

_FINISH_REASONS = {engine_pb2.FINISH_REASON_STOP: "stop", engine_pb2.FINISH_REASON_LENGTH: "length"}


class PlacedLogprob(NamedTuple):
    """A token's log probabilities, and where its text begins."""

    start: int  # characters, in the sequence's text
    logprob: engine_pb2.TokenLogprob


class Delta(NamedTuple):
    """What one step adds to a sequence's text."""

    text: str
    logprobs: Sequence[PlacedLogprob]  # of the tokens whose text begins in `text`
    finish_reason: str | None  # "stop" or "length", on the last


_NOTHING = Delta("", (), None)


class SequenceText:
    """The text of one growing sequence: whole characters only, and nothing of a stop string that comes true."""

    __slots__ = ("_decoded", "_detokenizer", "_pending", "_released", "_stop", "finish_reason", "num_tokens")

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        stop: Sequence[str] = (),
        logprobs: bool = False,
        prompt_token_ids: Sequence[int] = (),
    ) -> None:
        """With `prompt_token_ids` the text continues that prompt; without, it is a text of its own."""
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt_token_ids=prompt_token_ids)
        self._stop = StopMatcher(stop) if stop else None
        self._pending: deque[PlacedLogprob] | None = (
            deque() if logprobs else None
        )  # of tokens whose text is not out yet
        self._decoded = 0  # characters out of the detokenizer
        self._released = 0  # characters out of here
        self.num_tokens = 0
        self.finish_reason: str | None = None

    def push(self, output: engine_pb2.SequenceOutput) -> Delta:
        """Take the sequence's tokens of one step. After the finish nothing more comes out."""
        if self.finish_reason is not None:
            return _NOTHING
        finished = _FINISH_REASONS.get(output.finish_reason)
        token_ids: Sequence[int] = output.token_ids
        num_tokens = len(token_ids)
        if finished and output.HasField("stop_token_id"):
            token_ids = token_ids[:-1]  # it counts, and has no text
        if self._stop is None and self._pending is None:
            text = self._detokenizer.push(token_ids)
            if finished:
                text += self._detokenizer.flush()
            self.num_tokens += num_tokens
            self.finish_reason = finished
            return Delta(text, (), finished)
        return self._push_one_by_one(token_ids, num_tokens, output.logprobs, finished)

    def _push_one_by_one(
        self,
        token_ids: Sequence[int],
        num_tokens: int,
        logprobs: Sequence[engine_pb2.TokenLogprob],
        finished: str | None,
    ) -> Delta:
        """Token by token, to know where each one's text begins, and which one completes a stop string."""
        parts: list[str] = []
        for i, token_id in enumerate(token_ids):
            text = self._detokenizer.push((token_id,))
            if self._pending is not None:
                self._pending.append(PlacedLogprob(self._decoded, logprobs[i]))
            if self._take(text, parts):
                return self._delta(parts, i + 1, "stop")
        if finished and self._take(self._detokenizer.flush(), parts):
            return self._delta(parts, num_tokens, "stop")
        if finished and self._stop is not None:
            parts.append(self._stop.flush())
        return self._delta(parts, num_tokens, finished, everything=finished is not None)

    def _take(self, text: str, parts: list[str]) -> bool:
        """Add what of the text is safe to send; true when it completed a stop string."""
        self._decoded += len(text)
        matched: str | None = None
        if self._stop is not None:
            text, matched = self._stop.feed(text)
        parts.append(text)
        return matched is not None

    def _delta(self, parts: list[str], num_tokens: int, finished: str | None, everything: bool = False) -> Delta:
        text = "".join(parts)
        self.num_tokens += num_tokens
        self.finish_reason = finished
        return Delta(text, self._release(len(text), everything), finished)

    def _release(self, num_characters: int, everything: bool) -> list[PlacedLogprob]:
        """The entries of tokens whose first character is now out; of a character spread over tokens, all of them."""
        self._released += num_characters
        pending = self._pending
        released: list[PlacedLogprob] = []
        while pending and (everything or pending[0].start < self._released):
            released.append(pending.popleft())
        return released
