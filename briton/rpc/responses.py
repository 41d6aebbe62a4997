"""Chunks of one request to the responses of its call: joined by sequence, with text if asked for, usage at the end."""

from __future__ import annotations

from collections.abc import Sequence

from briton.engine.types import FinishReason, TokenChunk, TokenLogprob
from briton.rpc.wire import FINISH_REASONS, logprobs_to_proto, usage_to_proto
from briton.text.sequence_text import SequenceText
from briton.v1 import engine_pb2 as pb


class ResponseBuilder:
    """One call's responses. `texts` has one entry for each sequence, or is empty when nobody looks at text; only with
    `return_text` is it told. `speculates` says whether usage tells of drafts."""

    def __init__(
        self,
        num_prompt: int,
        n: int,
        *,
        texts: Sequence[SequenceText[TokenLogprob]] = (),
        return_text: bool = False,
        stream: bool = True,
        speculates: bool = False,
    ) -> None:
        self._num_prompt = num_prompt
        self._stream = stream
        self._speculates = speculates
        self._outputs = [_Output(index, texts[index] if texts else None, return_text) for index in range(n)]

    @property
    def all_ended(self) -> bool:
        """Every sequence has its finish reason; usage may still be missing."""
        return all(output.reason is not None for output in self._outputs)

    def take_stopped(self) -> list[int]:
        """Sequences that a stop string has ended since the last call, and that their executor may go on with."""
        stopped = [output.index for output in self._outputs if output.stopped_early]
        for index in stopped:
            self._outputs[index].stopped_early = False
        return stopped

    def add(self, chunks: Sequence[TokenChunk]) -> pb.GenerateResponse | None:
        """The response to send for these chunks, if any; it has `usage` when the final chunk is among them.

        Without streaming the last sequence's end waits for it: an answer of one sequence is one response.
        """
        for chunk in chunks:
            self._outputs[chunk.index].add(chunk)
        if not self._stream and self.all_ended and not chunks[-1].is_final:
            return None  # ended by a stop string: the executor has not confirmed it yet
        response = pb.GenerateResponse(
            outputs=[output.take() for output in self._outputs if output.is_due(self._stream)]
        )
        last = chunks[-1]
        if last.is_final:
            completion_tokens = sum(output.num_tokens for output in self._outputs)
            speculation = last.speculation if self._speculates else None
            usage = usage_to_proto(self._num_prompt, completion_tokens, last.cached_tokens, last.timings, speculation)
            response.usage.CopyFrom(usage)
        return response if response.outputs or last.is_final else None


class _Output:
    """What one sequence has to say and has not said yet."""

    __slots__ = (
        "_ids",
        "_logprobs",
        "_return_text",
        "_stop_token_id",
        "_text",
        "_texts",
        "index",
        "num_tokens",
        "reason",
        "said_end",
        "stopped_early",
    )

    def __init__(self, index: int, text: SequenceText[TokenLogprob] | None, return_text: bool) -> None:
        self.index = index
        self._text = text
        self._return_text = return_text
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._texts: list[str] = []
        self._stop_token_id: int | None = None
        self.num_tokens = 0  # so far, said or not
        self.reason: FinishReason | None = None
        self.said_end = False
        self.stopped_early = False  # by a stop string, in the middle of what its executor generates

    def add(self, chunk: TokenChunk) -> None:
        """Take the chunk in; after the end (a stop string) the sequence is no longer listened to."""
        if self.reason is not None:
            return
        token_ids, logprobs = chunk.token_ids, chunk.logprobs
        self.reason, self._stop_token_id = chunk.finish_reason, chunk.stop_token_id
        if self._text is not None:
            delta = self._text.push(
                token_ids, ends=self.reason is not None, has_stop_token=chunk.stop_token_id is not None
            )
            if delta.stopped:
                self.stopped_early = self.reason is None
                self.reason = FinishReason.STOP
            if delta.num_tokens < len(token_ids):
                token_ids, logprobs = token_ids[: delta.num_tokens], logprobs[: delta.num_tokens]
                self._stop_token_id = None
            if self._return_text:
                self._texts.append(delta.text)
        self._ids += token_ids
        self._logprobs += logprobs
        self.num_tokens += len(token_ids)

    def is_due(self, stream: bool) -> bool:
        """Is there something to send? Without streaming only at the end."""
        if self.reason is not None:
            return not self.said_end
        return stream and bool(self._ids)

    def take(self) -> pb.SequenceOutput:
        """What is due; it is said now."""
        message = pb.SequenceOutput(index=self.index, token_ids=self._ids)
        self._ids = []
        if self._logprobs:
            message.logprobs.extend(logprobs_to_proto(self._logprobs))
            self._logprobs = []
        if self._texts:
            message.text = "".join(self._texts)
            self._texts = []
        if self.reason is not None:
            self.said_end = True
            message.finish_reason = FINISH_REASONS[self.reason]
            if self._stop_token_id is not None:
                message.stop_token_id = self._stop_token_id
        return message
