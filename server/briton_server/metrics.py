"""Prometheus metrics: what the gateway sees itself, and the engine's own on each scrape."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from briton.v1 import engine_pb2

# Edges of buckets, in seconds, up to the server's own deadline for a request: see `_up_to`.
_LONG_S = (10, 30, 60, 120, 300, 600, 1200, 3600)
_REQUEST_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, *_LONG_S)
_WAIT_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, *_LONG_S)
_TOKEN_S = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.5, 1, 5, *_LONG_S)

_ENGINE_GAUGES = {
    "num_running": ("running_sequences", "Sequences in the batch"),
    "num_waiting": ("waiting_sequences", "Sequences that wait: of new requests, siblings, and preempted ones"),
    "kv_blocks_total": ("kv_blocks", "Blocks of the KV cache"),
    "kv_blocks_used": ("kv_blocks_used", "KV cache blocks held by open requests"),
    "kv_blocks_cached": ("kv_blocks_cached", "Free KV cache blocks whose content can be reused"),
}
_ENGINE_COUNTERS = {
    "num_steps": ("steps", "Steps of the model"),
    "num_prompt_tokens": ("prompt_tokens", "Prompt tokens computed"),
    "num_cached_tokens": ("cached_tokens", "Prompt tokens found in the KV cache"),
    "num_output_tokens": ("output_tokens", "Tokens generated"),
    "num_sequence_steps": ("sequence_steps", "Sequences that got tokens, summed over steps"),
    "num_draft_tokens": ("draft_tokens", "Tokens guessed ahead and computed"),
    "num_accepted_tokens": ("accepted_tokens", "Those of them that became output"),
    "num_preemptions": ("preemptions", "Sequences that lost their blocks and were computed again"),
    "num_requests": ("requests", "Requests accepted"),
    "step_s": ("step_seconds", "Time spent in steps"),
    "host_s": ("host_seconds", "The part of step_seconds outside the model call"),
}


class Metrics:
    """The metrics of one gateway, in a registry of their own."""

    def __init__(self, request_timeout_s: float | None = None) -> None:
        """`request_timeout_s`: nothing takes longer, and no histogram ends before it."""
        self._request_timeout_s = request_timeout_s
        self.registry = CollectorRegistry()
        self.engine = _EngineStats()
        self.registry.register(self.engine)
        self.requests = Counter(
            "briton_http_requests",
            "Answered requests (499: the client left)",
            ["endpoint", "status"],
            registry=self.registry,
        )
        self.open_requests = Gauge("briton_open_requests", "Generation requests being answered", registry=self.registry)
        self.connections = Gauge("briton_connections", "Open HTTP connections", registry=self.registry)
        self.disconnects = Counter(
            "briton_disconnects", "Generation requests whose client left before the end", registry=self.registry
        )
        self.request_s = self._histogram(
            "briton_request_seconds", "From a generation request to the end of its answer", _REQUEST_S
        )
        self.first_token_s = self._histogram(
            "briton_time_to_first_token_seconds",
            "From a prompt's arrival at the engine to its first token, streamed or not: queue and prefill",
            _WAIT_S,
        )
        self.inter_token_s = self._histogram(
            "briton_inter_token_seconds",
            "Between two steps that gave tokens to the same sequence of a streamed request",
            _TOKEN_S,
        )
        self.queue_s = self._histogram("briton_queue_seconds", "In the engine's queue", _WAIT_S)
        self.prefill_s = self._histogram("briton_prefill_seconds", "From the first step to the first token", _WAIT_S)
        self.prompt_tokens = Counter(
            "briton_prompt_tokens", "Prompt tokens of finished requests", registry=self.registry
        )
        self.cached_tokens = Counter(
            "briton_cached_tokens", "Those of them that the KV cache had already", registry=self.registry
        )
        self.completion_tokens = Counter(
            "briton_completion_tokens", "Generated tokens of finished requests", registry=self.registry
        )

    def exposition(self, stats: engine_pb2.Stats | None) -> bytes:
        """Everything in Prometheus' text format; without the engine's part when it gave no stats."""
        self.engine.stats = stats
        return generate_latest(self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=_up_to(buckets, self._request_timeout_s), registry=self.registry)


def _up_to(edges: tuple[float, ...], limit: float | None) -> tuple[float, ...]:
    """The edges below `limit`, and `limit` as the last; all of them without one."""
    return edges if limit is None else (*(edge for edge in edges if edge < limit), limit)


class _EngineStats(Collector):
    """The last Stats as metrics."""

    def __init__(self) -> None:
        self.stats: engine_pb2.Stats | None = None

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("briton_engine_up", "1 when the engine answers")
        up.add_metric([], 0 if self.stats is None else 1)
        yield up
        if self.stats is None:
            return
        for field, (name, text) in _ENGINE_GAUGES.items():
            yield GaugeMetricFamily(f"briton_engine_{name}", text, value=getattr(self.stats, field))
        for field, (name, text) in _ENGINE_COUNTERS.items():
            yield CounterMetricFamily(f"briton_engine_{name}", text, value=getattr(self.stats, field))
