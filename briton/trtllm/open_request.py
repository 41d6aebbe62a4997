"""From the library's responses to the chunks of one request."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from briton.engine.types import FinishReason, GenerationRequest, ModelInfo, Speculation, TokenChunk, TokenLogprob
from briton.errors import DeadlineExceeded, InvalidRequest
from briton.trtllm.constraint import Constraint
from briton.trtllm.library import Library
from briton.trtllm.logprobs import token_logprobs
from briton.trtllm.perf_metrics import PerfMetrics, cached_tokens, num_draft_tokens, request_timings

# What the library says of a request that it would not start (executorImpl, fetchNewRequests).
_REFUSAL = "Encountered an error when fetching new request"


class LibraryResult(Protocol):
    """What is read of `Result`."""

    is_final: bool
    is_sequence_final: bool
    sequence_index: int
    output_token_ids: list[list[int]]  # by beam: new tokens, the prompt excluded
    finish_reasons: list[Any]  # by beam
    generation_logits: Any  # [tokens, beams, vocab], or [beams, tokens, vocab] where nothing is streamed
    decoding_iter: int  # steps that the sequence took so far
    request_perf_metrics: PerfMetrics | None


class LibraryResponse(Protocol):
    """What is read of `Response`. `result` raises where `has_error()`."""

    client_id: int | None
    error_msg: str
    result: LibraryResult

    def has_error(self) -> bool:
        """Whether there is an `error_msg` and no result."""
        ...


@dataclass(slots=True)
class _Sequence:
    """One of the n sequences."""

    num_tokens: int = 0
    num_steps: int = 0
    finished: bool = False
    token_ids: list[int] = field(default_factory=list)  # kept where a guide is


class OpenRequest:
    """A request between submit and its final chunk."""

    def __init__(
        self,
        request: GenerationRequest,
        info: ModelInfo,
        library: Library,
        stops: frozenset[int],
        constraint: Constraint | None,
    ) -> None:
        self.request = request
        self.library_id: int | None = None  # None: enqueue_request has not returned yet
        self.cancel_wanted = False
        self.has_responded = False
        self.is_finished = False
        self._info = info
        self._library = library
        self._stops = stops
        self._constraint = constraint
        self._sequences = [_Sequence() for _ in range(request.sampling.n)]
        self._submitted_at = time.monotonic()
        self._metrics: PerfMetrics | None = None  # the first sequence's: the prompt is computed for it
        self._num_draft_tokens = 0

    @property
    def num_output_tokens(self) -> int:
        """Given out so far."""
        return sum(sequence.num_tokens for sequence in self._sequences)

    def take(self, response: LibraryResponse) -> TokenChunk | None:
        """What a response has to tell the caller; None: nothing. Raises whatever is wrong with it."""
        self.has_responded = True
        if response.has_error():
            return self.end(FinishReason.ERROR, _error(response.error_msg))
        result = response.result
        index = result.sequence_index
        sequence = self._sequences[index]
        if sequence.finished:
            return None
        if index == 0 or self._metrics is None:
            self._metrics = result.request_perf_metrics or self._metrics
        given = result.output_token_ids[0]
        failure = None if self._constraint is None else self._constraint.failure
        num_sound = len(given) if failure is None else max(0, failure.num_tokens - sequence.num_tokens)
        token_ids = self._until_stop(tuple(given[:num_sound]))
        logprobs = self._logprobs(result, token_ids)
        sequence.num_tokens += len(token_ids)
        sequence.num_steps = min(result.decoding_iter, sequence.num_tokens)
        if self.request.guide is not None:
            sequence.token_ids += token_ids
        if failure is not None and (result.is_sequence_final or num_sound < len(given)):
            return self.end(FinishReason.ERROR, failure.error, index, token_ids, logprobs)
        if not result.is_sequence_final:
            return TokenChunk(self.request.request_id, index, token_ids, logprobs) if token_ids else None
        sequence.finished = True
        self._num_draft_tokens += num_draft_tokens(result.request_perf_metrics)
        is_last = result.is_final or all(s.finished for s in self._sequences)
        reason, error = self._reason(result, sequence)
        if error is not None:
            return self.end(FinishReason.ERROR, error, index, token_ids, logprobs)
        stop = token_ids[-1] if reason is FinishReason.STOP and token_ids and token_ids[-1] in self._stops else None
        chunk = TokenChunk(self.request.request_id, index, token_ids, logprobs, reason, stop)
        return self._final(chunk) if is_last else chunk

    def end(
        self,
        reason: FinishReason,
        error: Exception | None = None,
        index: int | None = None,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> TokenChunk:
        """The final chunk of a request that ends before its time, with all its sequences."""
        if index is None:
            index = next((i for i, sequence in enumerate(self._sequences) if not sequence.finished), 0)
        return self._final(TokenChunk(self.request.request_id, index, token_ids, logprobs, reason, error=error))

    def speculation(self) -> Speculation:
        """What lookahead did for all its sequences: a step gives one token, and those that were accepted."""
        num_steps = sum(sequence.num_steps for sequence in self._sequences)
        num_accepted = self.num_output_tokens - num_steps
        return Speculation(num_steps, max(num_accepted, self._num_draft_tokens), num_accepted)

    def cached_tokens(self) -> int:
        """Of the prompt, found in the KV cache."""
        return cached_tokens(self._metrics, self._info.kv_block_size, len(self.request.prompt_token_ids))

    def _final(self, chunk: TokenChunk) -> TokenChunk:
        self.is_finished = True
        return TokenChunk(
            chunk.request_id,
            chunk.index,
            chunk.token_ids,
            chunk.logprobs,
            chunk.finish_reason,
            chunk.stop_token_id,
            chunk.error,
            is_final=True,
            cached_tokens=self.cached_tokens(),
            timings=request_timings(self._metrics, time.monotonic() - self._submitted_at),
            speculation=self.speculation(),
        )

    def _until_stop(self, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """Up to the first stop token: a step with lookahead may have accepted more."""
        for position, token_id in enumerate(token_ids):
            if token_id in self._stops:
                return token_ids[: position + 1]
        return token_ids

    def _logprobs(self, result: LibraryResult, token_ids: tuple[int, ...]) -> tuple[TokenLogprob, ...]:
        num_top = self.request.sampling.logprobs
        if num_top is None or not token_ids:
            return ()
        logits = self._library.array(result.generation_logits)
        rows = logits.reshape(-1, logits.shape[-1])[:, : self._info.vocab_size]  # one beam
        return token_logprobs(rows, token_ids, num_top)

    def _reason(self, result: LibraryResult, sequence: _Sequence) -> tuple[FinishReason, Exception | None]:
        """Why a sequence ended, and with which error."""
        told = result.finish_reasons[0]
        if told == self._library.trtllm.FinishReason.TIMED_OUT:
            return FinishReason.ERROR, DeadlineExceeded(f"the request did not finish within {self._timeout()}")
        reason = finish_reasons(self._library).get(told)
        if reason is None:
            return FinishReason.ERROR, RuntimeError(f"TensorRT-LLM ended a sequence with the reason {told}")
        if reason is FinishReason.LENGTH and self._is_complete(sequence):
            return FinishReason.STOP, None
        return reason, None

    def _is_complete(self, sequence: _Sequence) -> bool:
        """Whether the guide needs nothing more: only the stop token was cut off."""
        if self.request.guide is None:
            return False
        guide = self.request.guide.copy()
        return guide.advance(sequence.token_ids) and guide.is_terminated()

    def _timeout(self) -> str:
        return "its time" if self.request.timeout_s is None else f"{self.request.timeout_s:.3g} s"


def finish_reasons(library: Library) -> Mapping[Any, FinishReason]:
    """The library's reasons that are no errors."""
    reasons = library.trtllm.FinishReason
    return {
        reasons.END_ID: FinishReason.STOP,
        reasons.STOP_WORDS: FinishReason.STOP,
        reasons.LENGTH: FinishReason.LENGTH,
        reasons.CANCELLED: FinishReason.CANCELLED,
    }


def _error(message: str) -> Exception:
    if message.startswith(_REFUSAL):
        return InvalidRequest(f"TensorRT-LLM refuses the request: {message.removeprefix(_REFUSAL).lstrip(': ')}")
    return RuntimeError(f"TensorRT-LLM: {message}")
