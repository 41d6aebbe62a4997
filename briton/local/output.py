"""From sampled tokens to chunks: what ends a sequence, and what its caller is told."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from briton.engine.types import FinishReason, TokenChunk, TokenLogprob
from briton.local.sampler import Sampled
from briton.local.sequence import RequestState, SequenceState


class _Held(NamedTuple):
    """Tokens of a sequence whose request does not stream."""

    token_ids: list[int]
    logprobs: list[TokenLogprob]


class OutputProcessor:
    """Appends tokens to sequences, decides their end, and holds back what a request that does not stream gets at its
    end."""

    def __init__(self, stop_token_ids: Iterable[int]) -> None:
        self._stop_token_ids = frozenset(stop_token_ids)
        self._held: dict[SequenceState, _Held] = {}

    @property
    def held(self) -> Collection[SequenceState]:
        """Sequences of which tokens are held back."""
        return self._held.keys()

    def append(self, sequence: SequenceState, sampled: Sampled) -> None:
        """Add a token to its sequence, and set `finish_reason` if it was the last."""
        sequence.token_ids.append(sampled.token_id)
        if sampled.ends_guide or self._is_stop(sequence, sampled.token_id):
            sequence.finish_reason = FinishReason.STOP
        elif sequence.num_output_tokens >= sequence.sampling.max_tokens:
            sequence.finish_reason = FinishReason.LENGTH

    def chunk(self, sequence: SequenceState, sampled: list[Sampled]) -> TokenChunk | None:
        """What to send of the tokens that a step appended; None when they are held back."""
        state = sequence.request_state
        token_ids = tuple(token.token_id for token in sampled)
        logprobs = tuple(token.logprob for token in sampled if token.logprob is not None)
        if not state.request.stream:
            if sequence.finish_reason is None:
                held = self._held.setdefault(sequence, _Held([], []))
                held.token_ids.extend(token_ids)
                held.logprobs.extend(logprobs)
                return None
            held = self._release(sequence)
            token_ids, logprobs = (*held.token_ids, *token_ids), (*held.logprobs, *logprobs)
        if sequence.finish_reason is None:
            return TokenChunk(state.request.request_id, sequence.index, token_ids, logprobs)
        is_final = state.is_finished
        return TokenChunk(
            state.request.request_id,
            sequence.index,
            token_ids,
            logprobs,
            sequence.finish_reason,
            stop_token_id=self._stop_token_id(sequence, token_ids),
            is_final=is_final,
            cached_tokens=state.cached_tokens if is_final else 0,
            timings=state.timings() if is_final else None,
            speculation=state.speculation() if is_final else None,
        )

    def ended(self, state: RequestState, reason: FinishReason, error: Exception | None = None) -> TokenChunk:
        """The final chunk of a request that ends before its time. Tokens held back are given with it where there is
        but one sequence."""
        last = next((s for s in state.sequences if s.finish_reason is None), state.sequences[0])
        held = self._release(last)
        for sequence in state.sequences:
            self._release(sequence)
            sequence.finish_reason = sequence.finish_reason or reason
        return TokenChunk(
            state.request.request_id,
            last.index,
            tuple(held.token_ids),
            tuple(held.logprobs),
            reason,
            error=error,
            is_final=True,
            cached_tokens=state.cached_tokens,
            timings=state.timings(),
            speculation=state.speculation(),
        )

    def _release(self, sequence: SequenceState) -> _Held:
        return self._held.pop(sequence, None) or _Held([], [])

    def _stop_token_id(self, sequence: SequenceState, token_ids: tuple[int, ...]) -> int | None:
        ended = sequence.finish_reason is FinishReason.STOP and bool(token_ids)
        return token_ids[-1] if ended and self._is_stop(sequence, token_ids[-1]) else None

    def _is_stop(self, sequence: SequenceState, token_id: int) -> bool:
        sampling = sequence.sampling
        if token_id in sampling.stop_token_ids:
            return True
        return token_id in self._stop_token_ids and (not sampling.ignore_eos or sequence.guide is not None)
