"""The library's iteration statistics, and our own counters, as ExecutorStats."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from briton.engine.step_cost import StepCost, StepShape
from briton.engine.types import ExecutorStats, StepProgress
from briton.trtllm.open_request import OpenRequest


class KvCacheStats(Protocol):
    """What is read of `KvCacheStats`."""

    max_num_blocks: int
    used_num_blocks: int
    tokens_per_block: int


class InflightBatchingStats(Protocol):
    """What is read of `InflightBatchingStats`."""

    num_paused_requests: int


class IterationStats(Protocol):
    """What is read of `IterationStats`."""

    iter: int
    iter_latency_ms: float
    num_active_requests: int
    num_queued_requests: int
    kv_cache_stats: KvCacheStats | None
    inflight_batching_stats: InflightBatchingStats | None


@dataclass(slots=True)
class StatsBook:
    """Sums over all iterations and requests. Not thread-safe.

    The library tells of every iteration once, and of the end of the last one, when nothing runs any more: its latest
    gauges hold until the next. Tokens are counted from responses: a caller who has seen them finds them counted.
    """

    num_requests: int = 0
    cost: StepCost = field(default_factory=StepCost)
    _num_steps: int = 0
    _step_ms: float = 0.0
    _num_preemptions: int = 0
    _num_active: int = 0
    _num_queued: int = 0
    _kv_blocks_total: int = 0
    _kv_blocks_used: int = 0
    _tokens_per_block: int = 0
    _num_prompt_tokens: int = 0
    _num_cached_tokens: int = 0
    _num_output_tokens: int = 0
    _num_sequence_steps: int = 0
    _num_draft_tokens: int = 0
    _num_accepted_tokens: int = 0

    @property
    def kv_cache(self) -> tuple[int, int]:
        """(blocks, tokens in one); zeros until an iteration has told."""
        return self._kv_blocks_total, self._tokens_per_block

    def add_iterations(self, iterations: Iterable[IterationStats]) -> None:
        """Book what `get_latest_iteration_stats` gave; `cost` learns from it."""
        for iteration in iterations:
            # How many tokens of prompts it computed is not among what is read here: a request is a token and a row.
            active = iteration.num_active_requests
            self.cost.observe(StepShape(active, active), iteration.iter_latency_ms / 1000)
            self._num_steps = max(self._num_steps, iteration.iter)
            self._step_ms += iteration.iter_latency_ms
            self._num_active = iteration.num_active_requests
            self._num_queued = iteration.num_queued_requests
            if (kv := iteration.kv_cache_stats) is not None:
                self._kv_blocks_total, self._kv_blocks_used = kv.max_num_blocks, kv.used_num_blocks
                self._tokens_per_block = kv.tokens_per_block
            if (inflight := iteration.inflight_batching_stats) is not None:
                self._num_preemptions += inflight.num_paused_requests

    def add_ended(self, request: OpenRequest) -> None:
        """Book a request that has ended."""
        speculation, cached = request.speculation(), request.cached_tokens()
        self._num_sequence_steps += speculation.num_steps
        self._num_draft_tokens += speculation.num_draft_tokens
        self._num_accepted_tokens += speculation.num_accepted_tokens
        if request.has_responded:
            self._num_cached_tokens += cached
            self._num_prompt_tokens += len(request.request.prompt_token_ids) - cached

    def add_output_tokens(self, num_tokens: int) -> None:
        """Book what a chunk gave."""
        self._num_output_tokens += num_tokens

    def progress(self) -> StepProgress:
        """Steps, and the mean of their seconds."""
        mean_s = self._step_ms / 1000 / self._num_steps if self._num_steps else None
        return StepProgress(self._num_steps, mean_s, self._num_active)

    def snapshot(self, host_s: float) -> ExecutorStats:
        """All of it. `host_s` is the time spent in the logits processor: no other host work is told apart."""
        step_s = self._step_ms / 1000
        return ExecutorStats(
            num_running=self._num_active,
            num_waiting=self._num_queued,
            kv_blocks_total=self._kv_blocks_total,
            kv_blocks_used=self._kv_blocks_used,
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_cached_tokens=self._num_cached_tokens,
            num_output_tokens=self._num_output_tokens,
            num_preemptions=self._num_preemptions,
            num_requests=self.num_requests,
            num_sequence_steps=self._num_sequence_steps,
            num_draft_tokens=self._num_draft_tokens,
            num_accepted_tokens=self._num_accepted_tokens,
            step_s=step_s,
            host_s=min(host_s, step_s),
        )
