"""Runs requests on an Executor to their ends, and checks on the way what holds for every chunk."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from typing import Any

from briton.config.lookahead import LookaheadConfig
from briton.engine.executor import Executor
from briton.engine.types import FinishReason, GenerationRequest, SamplingParams, TokenChunk
from briton.guidance.guide import Guide

TIMEOUT_S = 60.0
ENDED_EARLY = (FinishReason.CANCELLED, FinishReason.ERROR)


class Result:
    """What one request gave."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.chunks: list[TokenChunk] = []

    @property
    def final(self) -> TokenChunk:
        """The last chunk."""
        assert self.chunks, "no chunk came"
        assert self.chunks[-1].is_final
        return self.chunks[-1]

    def of(self, index: int) -> list[TokenChunk]:
        """The chunks of one sequence."""
        return [chunk for chunk in self.chunks if chunk.index == index]

    def tokens(self, index: int = 0) -> tuple[int, ...]:
        """All tokens of one sequence."""
        return tuple(token_id for chunk in self.of(index) for token_id in chunk.token_ids)

    def reason(self, index: int = 0) -> FinishReason | None:
        """Why one sequence ended."""
        reasons = [chunk.finish_reason for chunk in self.of(index) if chunk.finish_reason is not None]
        assert len(reasons) <= 1, f"sequence {index} ended {len(reasons)} times"
        return reasons[0] if reasons else None


class RequestRunner:
    """Submits to one executor and collects its chunks; the one caller of `await_chunks`."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.results: dict[int, Result] = {}
        self._ids = itertools.count(1)

    def request(
        self,
        prompt: Iterable[int],
        *,
        guide: Guide | None = None,
        priority: int = 0,
        cache_salt: str = "",
        stream: bool = True,
        lookahead: LookaheadConfig | None = None,
        prediction: Iterable[int] = (),
        lora: str | None = None,
        **sampling: Any,
    ) -> GenerationRequest:
        """A request with an id of its own; greedy, and blind to the model's stop ids, unless told otherwise."""
        sampling = {"temperature": 0.0, "ignore_eos": guide is None, "max_tokens": 8, **sampling}
        params = SamplingParams(**sampling)
        return GenerationRequest(
            next(self._ids),
            tuple(prompt),
            params,
            guide,
            priority,
            cache_salt,
            stream,
            lookahead,
            tuple(prediction),
            lora=lora,
        )

    def submit(self, prompt: Iterable[int], **options: Any) -> Result:
        """Make a request and submit it."""
        return self.submit_request(self.request(prompt, **options))

    def submit_request(self, request: GenerationRequest) -> Result:
        """Submit; the result fills as chunks are collected."""
        result = self.results[request.request_id] = Result(request)
        try:
            self.executor.submit(request)
        except BaseException:
            del self.results[request.request_id]
            raise
        return result

    def run(self, prompt: Iterable[int], **options: Any) -> Result:
        """Submit one request and wait for its end."""
        result = self.submit(prompt, **options)
        self.finish(result)
        return result

    def finish(self, *results: Result) -> None:
        """Collect chunks until these requests have ended (all, when none is named)."""
        wanted = results or tuple(self.results.values())
        deadline = time.monotonic() + TIMEOUT_S
        while not all(result.chunks and result.chunks[-1].is_final for result in wanted):
            assert time.monotonic() < deadline, "requests did not end"
            self.collect(0.2)

    def collect(self, timeout: float) -> int:
        """Await chunks once; how many came."""
        chunks = self.executor.await_chunks(timeout)
        for chunk in chunks:
            self._check(chunk)
            self.results[chunk.request_id].chunks.append(chunk)
        return len(chunks)

    def _check(self, chunk: TokenChunk) -> None:
        """What every chunk keeps to."""
        assert chunk.request_id in self.results, "a chunk of a request that was not accepted"
        result = self.results[chunk.request_id]
        sampling = result.request.sampling
        assert not (result.chunks and result.chunks[-1].is_final), "a chunk after the final one"
        assert 0 <= chunk.index < sampling.n
        assert result.reason(chunk.index) is None, "a chunk of a sequence that had ended"
        assert all(0 <= token_id < self.executor.info.vocab_size for token_id in chunk.token_ids)
        if sampling.logprobs is None:
            assert chunk.logprobs == ()
        else:
            assert tuple(entry.token_id for entry in chunk.logprobs) == chunk.token_ids
        if chunk.stop_token_id is not None:
            assert chunk.finish_reason is FinishReason.STOP
            assert chunk.token_ids[-1] == chunk.stop_token_id
        assert (chunk.error is not None) == (chunk.finish_reason is FinishReason.ERROR)
        if chunk.is_final:
            assert chunk.finish_reason is not None
            if chunk.finish_reason not in ENDED_EARLY:
                unfinished = [i for i in range(sampling.n) if i != chunk.index and result.reason(i) is None]
                assert unfinished == [], f"the final chunk came before the end of sequences {unfinished}"
        else:
            assert chunk.finish_reason is not None or chunk.token_ids or chunk.logprobs, "an empty chunk"
