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

    def __init__(self, tokenizer: Tokenizer, *, stop: Sequence[str] = (), logprobs: bool = False) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer)
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
        token_ids: Sequence[int] = output.token_ids
        self.num_tokens += len(token_ids)
        finished = _FINISH_REASONS.get(output.finish_reason)
        if finished and output.HasField("stop_token_id"):
            token_ids = token_ids[:-1]
        if self._pending is None:
            text = self._detokenizer.push(token_ids)
        else:
            text = self._push_with_logprobs(self._pending, token_ids, output.logprobs)
        if finished:
            text += self._detokenizer.flush()
        if self._stop is not None:
            text, matched = self._stop.feed(text)
            if matched is not None:
                self.finish_reason = "stop"
                return Delta(text, self._release(len(text)), "stop")
            if finished:
                text += self._stop.flush()
        self.finish_reason = finished
        if self._pending is None:
            return Delta(text, (), finished)
        return Delta(text, self._release(len(text), everything=finished is not None), finished)

    def _push_with_logprobs(
        self,
        pending: deque[PlacedLogprob],
        token_ids: Sequence[int],
        logprobs: Sequence[engine_pb2.TokenLogprob],
    ) -> str:
        """Detokenize one by one, to know where each token's text begins. The stop token has no text, and no entry."""
        texts: list[str] = []
        for token_id, logprob in zip(token_ids, logprobs, strict=False):
            pending.append(PlacedLogprob(self._decoded, logprob))
            text = self._detokenizer.push((token_id,))
            self._decoded += len(text)
            texts.append(text)
        return "".join(texts)

    def _release(self, num_characters: int, everything: bool = False) -> list[PlacedLogprob]:
        """The entries of tokens whose first character is now out; of a character spread over tokens, all of them."""
        self._released += num_characters
        pending = self._pending
        released: list[PlacedLogprob] = []
        while pending and (everything or pending[0].start < self._released):
            released.append(pending.popleft())
        return released
