"""Responses, one by one, and what becomes of them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from briton.engine.types import FinishReason, GenerationRequest, ModelInfo, SamplingParams
from briton.errors import DeadlineExceeded
from briton.trtllm.constraint import Constraint
from briton.trtllm.logprobs import token_logprobs
from briton.trtllm.open_request import OpenRequest
from briton.trtllm.perf_metrics import request_timings
from briton.trtllm.stats import StatsBook
from tests.trtllm.stand_in.library import stand_in_library

LIBRARY = stand_in_library()
API = LIBRARY.trtllm
INFO = ModelInfo("m", "trtllm", "llama", 90, 256, 8, 4096, 64, 2048, 16, stop_token_ids=(80,))
STOPS = frozenset({80, 81})


def _open(**sampling: Any) -> OpenRequest:
    request = GenerationRequest(7, tuple(range(40)), SamplingParams(**sampling))
    return OpenRequest(request, INFO, LIBRARY, STOPS, Constraint(request, STOPS))


def _response(token_ids: list[int], reason: str = "NOT_FINISHED", index: int = 0, **fields: Any) -> Any:
    ended = reason != "NOT_FINISHED"
    result = API.Result(
        **{
            "is_final": ended,
            "is_sequence_final": ended,
            "sequence_index": index,
            "output_token_ids": [token_ids],
            "finish_reasons": [API.FinishReason[reason]],
            "decoding_iter": 1,
            **fields,
        }
    )
    return API.Response(request_id=1, client_id=7, error_msg="", result=result)


def _metrics(*seconds: float, **blocks: int) -> Any:
    names = ("arrival_time", "first_scheduled_time", "first_token_time", "last_token_time")
    return API.RequestPerfMetrics(
        timing_metrics=API.TimingMetrics(
            **{name: timedelta(seconds=s) for name, s in zip(names, seconds, strict=True)}
        ),
        kv_cache_metrics=API.KvCacheMetrics(num_reused_blocks=blocks.get("reused", 0)),
        speculative_decoding=API.SpeculativeDecodingMetrics(total_draft_tokens=blocks.get("drafted", 0)),
    )


def test_several_tokens_in_a_response_are_steps_and_accepted_ones() -> None:
    entry = _open()
    chunk = entry.take(_response([1, 2, 3], decoding_iter=1))
    assert chunk is not None
    assert (chunk.token_ids, chunk.finish_reason, chunk.is_final) == ((1, 2, 3), None, False)
    chunk = entry.take(
        _response([4, 5], "LENGTH", decoding_iter=2, request_perf_metrics=_metrics(1, 2, 3, 4, drafted=9))
    )
    assert chunk is not None
    assert chunk.speculation is not None
    speculation = chunk.speculation
    assert (speculation.num_steps, speculation.num_accepted_tokens, speculation.num_draft_tokens) == (2, 3, 9)


def test_an_empty_response_says_nothing() -> None:
    assert _open().take(_response([])) is None


def test_tokens_after_a_stop_token_are_not_given_out() -> None:
    chunk = _open().take(_response([1, 81, 5], "STOP_WORDS"))
    assert chunk is not None
    assert (chunk.token_ids, chunk.finish_reason, chunk.stop_token_id) == ((1, 81), FinishReason.STOP, 81)


def test_an_end_without_its_token() -> None:
    """The library does not give out an end_id: no token is made up for it."""
    chunk = _open().take(_response([1], "END_ID"))
    assert chunk is not None
    assert (chunk.token_ids, chunk.finish_reason, chunk.stop_token_id) == ((1,), FinishReason.STOP, None)


def test_an_end_without_a_reason_is_an_error() -> None:
    chunk = _open().take(_response([1], is_final=True, is_sequence_final=True))
    assert chunk is not None
    assert chunk.finish_reason is FinishReason.ERROR
    assert "NOT_FINISHED" in str(chunk.error)


def test_timed_out() -> None:
    chunk = _open().take(_response([], "TIMED_OUT"))
    assert chunk is not None
    assert isinstance(chunk.error, DeadlineExceeded)
    assert chunk.is_final


def test_the_last_sequence_is_the_final_chunk_whatever_is_final_says() -> None:
    entry = _open(n=2)
    first = entry.take(_response([1], "LENGTH", index=1, is_final=False))
    last = entry.take(_response([2], "LENGTH", index=0, is_final=False))
    assert first is not None
    assert last is not None
    assert (first.index, first.is_final, last.index, last.is_final) == (1, False, 0, True)
    assert entry.take(_response([3], index=0)) is None  # it has ended


def test_a_failure_cuts_what_came_after_it() -> None:
    request = GenerationRequest(7, (1, 2), SamplingParams(min_tokens=1))
    constraint = Constraint(request, STOPS)
    entry = OpenRequest(request, INFO, LIBRARY, STOPS, constraint)
    assert entry.take(_response([1, 2])) is not None
    error = ValueError("stuck")
    assert constraint.fail(error, 3)
    assert not constraint.fail(KeyError(), 0)  # the first counts
    sound = entry.take(_response([3]))
    assert sound is not None
    assert (sound.token_ids, sound.finish_reason) == ((3,), None)
    chunk = entry.take(_response([80], "STOP_WORDS"))
    assert chunk is not None
    assert (chunk.token_ids, chunk.finish_reason, chunk.error) == ((), FinishReason.ERROR, error)


def test_cached_tokens_are_whole_blocks_and_never_the_whole_prompt() -> None:
    for reused, expected in ((0, 0), (2, 32), (3, 39)):  # of 40 tokens, in blocks of 16
        chunk = _open().take(_response([1], "LENGTH", request_perf_metrics=_metrics(1, 2, 3, 4, reused=reused)))
        assert chunk is not None
        assert chunk.cached_tokens == expected


def test_timings() -> None:
    timings = request_timings(_metrics(10, 11, 13, 17), elapsed_s=7.5)
    assert (timings.queue_s, timings.prefill_s, timings.decode_s) == (1, 2, 4.5)
    waited = request_timings(_metrics(10, 0, 0, 0), elapsed_s=3)  # never scheduled
    assert (waited.queue_s, waited.prefill_s, waited.decode_s) == (3, 0, 0)
    assert request_timings(None, elapsed_s=3).queue_s == 3


def test_logprobs_of_masked_logits() -> None:
    row = np.log(np.array([0.5, 0.25, 0.25, 0], np.float32) + np.float32(1e-30))
    row[3] = -np.inf
    (entry,) = token_logprobs(row[None], [1], 4)
    assert entry.logprob == pytest.approx(np.log(0.25))
    assert [token_id for token_id, _ in entry.top] == [0, 1, 2]
    with pytest.raises(ValueError, match="1 rows of generation logits came for 2 tokens"):
        token_logprobs(row[None], [1, 2], 0)


def test_iterations_are_summed_and_gauges_are_the_last() -> None:
    book = StatsBook()
    for i, paused in ((3, 0), (4, 2)):
        book.add_iterations(
            [
                API.IterationStats(
                    iter=i,
                    iter_latency_ms=20.0,
                    num_active_requests=i,
                    num_queued_requests=10 - i,
                    kv_cache_stats=API.KvCacheStats(max_num_blocks=100, used_num_blocks=10 * i, tokens_per_block=32),
                    inflight_batching_stats=API.InflightBatchingStats(num_paused_requests=paused),
                )
            ]
        )
    stats = book.snapshot(host_s=1.0)
    assert (stats.num_steps, stats.num_running, stats.num_waiting, stats.num_preemptions) == (4, 4, 6, 2)
    assert (stats.kv_blocks_total, stats.kv_blocks_used) == (100, 40)
    assert [stats.step_s, stats.host_s] == pytest.approx([0.04, 0.04])
    assert book.kv_cache == (100, 32)
    book.add_iterations([API.IterationStats(iter=5, iter_latency_ms=0.0, num_active_requests=0, num_queued_requests=0)])
    assert book.snapshot(0.0).num_steps == 5
