"""What the library measured for one request (`RequestPerfMetrics`)."""

from __future__ import annotations

from datetime import timedelta
from typing import Protocol

from briton.engine.types import RequestTimings

TimePoint = timedelta  # since the clock's beginning (std::chrono::steady_clock); 0: it has not happened


class TimingMetrics(Protocol):
    """When things happened, on one clock."""

    arrival_time: TimePoint
    first_scheduled_time: TimePoint
    first_token_time: TimePoint
    last_token_time: TimePoint


class KvCacheMetrics(Protocol):
    """Blocks of the prompt."""

    num_reused_blocks: int


class SpeculativeDecodingMetrics(Protocol):
    """Draft tokens."""

    total_draft_tokens: int


class PerfMetrics(Protocol):
    """All of it, for one sequence."""

    timing_metrics: TimingMetrics
    kv_cache_metrics: KvCacheMetrics
    speculative_decoding: SpeculativeDecodingMetrics


def request_timings(metrics: PerfMetrics | None, elapsed_s: float) -> RequestTimings:
    """Where the time went of a request that was submitted `elapsed_s` ago: waiting, if it was never scheduled."""
    if metrics is None:
        return RequestTimings(queue_s=elapsed_s)
    times = metrics.timing_metrics
    if times.first_scheduled_time < times.arrival_time:
        return RequestTimings(queue_s=elapsed_s)
    queue_s = _seconds(times.arrival_time, times.first_scheduled_time)
    prefill_s = _seconds(times.first_scheduled_time, times.first_token_time)
    return RequestTimings(queue_s, prefill_s, max(0.0, elapsed_s - queue_s - prefill_s) if prefill_s else 0.0)


def cached_tokens(metrics: PerfMetrics | None, block_size: int, num_prompt: int) -> int:
    """Tokens of the prompt that came from the KV cache: whole blocks, and never the last token."""
    if metrics is None:
        return 0
    return max(0, min(metrics.kv_cache_metrics.num_reused_blocks * block_size, num_prompt - 1))


def num_draft_tokens(metrics: PerfMetrics | None) -> int:
    """Draft tokens that a sequence computed, as far as the library counts them."""
    return 0 if metrics is None else metrics.speculative_decoding.total_draft_tokens


def _seconds(start: TimePoint, end: TimePoint) -> float:
    return max(0.0, (end - start).total_seconds())
