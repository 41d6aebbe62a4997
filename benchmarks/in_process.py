"""Our executor in the benchmark's own process: no HTTP, no gRPC, no text."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from workload import Measured, Workload

from briton.engine.executor import Executor
from briton.engine.types import GenerationRequest, SamplingParams

_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class HostShare:
    """Where an executor's steps spent their time, in seconds."""

    step_s: float = 0.0
    host_s: float = 0.0  # of step_s, outside the model call
    num_steps: int = 0

    def __add__(self, other: HostShare) -> HostShare:
        return HostShare(self.step_s + other.step_s, self.host_s + other.host_s, self.num_steps + other.num_steps)

    def __sub__(self, other: HostShare) -> HostShare:
        return HostShare(self.step_s - other.step_s, self.host_s - other.host_s, self.num_steps - other.num_steps)


class InProcess:
    """Runs workloads on an executor, which it owns."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self._ids = count()

    def run(self, workload: Workload, run: int) -> Measured:
        """All requests at once, as a peer does it."""
        return self.generate(workload.prompts(run), workload.output_tokens)

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> Measured:
        """Greedy tokens of all prompts, past any end token."""
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        requests = [GenerationRequest(next(self._ids), tuple(prompt), sampling) for prompt in prompts]
        started = time.perf_counter()
        for request in requests:
            self.executor.submit(request)
        waiting = {request.request_id for request in requests}  # for their first token
        unfinished = len(requests)
        output_tokens = output_before = 0
        first_tokens = 0.0
        while unfinished:
            chunks = self.executor.await_chunks(_TIMEOUT_S)
            if not chunks:
                raise TimeoutError(f"the executor gave nothing for {_TIMEOUT_S:.0f} s")
            for chunk in chunks:
                if chunk.error is not None:
                    raise chunk.error
                output_tokens += len(chunk.token_ids)
                unfinished -= chunk.is_final
                waiting.discard(chunk.request_id)
            if not waiting and not first_tokens:
                first_tokens, output_before = time.perf_counter() - started, output_tokens
        wall = time.perf_counter() - started
        assert output_tokens == len(requests) * max_tokens
        return Measured(wall, first_tokens, output_tokens, output_tokens - output_before)

    def host_share(self) -> HostShare:
        """Counters since the executor's start."""
        stats = self.executor.stats()
        return HostShare(stats.step_s, stats.host_s, stats.num_steps)
