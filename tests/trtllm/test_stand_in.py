"""The stand-in is strict, and does what the library is known to do."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trtllm.engines import write_engine
from tests.trtllm.stand_in.api import TABLE
from tests.trtllm.stand_in.executor import Faults
from tests.trtllm.stand_in.library import stand_in_module

WAIT = timedelta(seconds=0.2)


@pytest.fixture
def api() -> Any:
    return stand_in_module()


def _executor(api: Any, directory: Path, **options: Any) -> Any:
    config = api.ExecutorConfig(kv_cache_config=api.KvCacheConfig(max_tokens=1024), **options)
    return api.Executor(write_engine(directory), api.ModelType.DECODER_ONLY, config)


def _all_responses(executor: Any, count: int) -> list[Any]:
    """Responses until `count` requests have ended."""
    responses: list[Any] = []
    while sum(r.has_error() or r.result.is_final for r in responses) < count:
        responses += executor.await_responses(timeout=WAIT)
    return responses


@pytest.mark.parametrize("name", TABLE["classes"])
def test_constructors_are_the_tables(api: Any, name: str) -> None:
    parameters = TABLE["classes"][name]
    required: list[Any] = [1 for p in parameters if p["required"]]
    if name == "Request":
        required = [[1], 1]
    instance = getattr(api, name)(*required)
    for p in parameters:
        assert p["required"] or hasattr(instance, p["name"])
    with pytest.raises(TypeError, match="no_such_argument"):
        getattr(api, name)(*required, no_such_argument=1)
    if required:
        with pytest.raises(TypeError, match="missing a required argument"):
            getattr(api, name)()
    positional = [p for p in parameters if not p["keyword_only"]]
    with pytest.raises(TypeError, match="too many positional arguments"):
        getattr(api, name)(*[None] * (len(positional) + 1))


def test_defaults(api: Any) -> None:
    config = api.ExecutorConfig()
    assert (config.max_beam_width, config.iter_stats_max_iterations, config.max_queue_size) == (1, 1000, None)
    assert config.batching_type is api.BatchingType.INFLIGHT
    assert config.scheduler_config.capacity_scheduler_policy is api.CapacitySchedulerPolicy.GUARANTEED_NO_EVICT
    assert api.Request([1], 1).priority == 0.5
    assert api.LogitsPostProcessorConfig().replicate is True
    assert api.Request.BATCHED_POST_PROCESSOR_NAME == "batched"


def test_unknown_names_are_refused(api: Any) -> None:
    with pytest.raises(AttributeError, match="no attribute 'NoSuchClass'"):
        api.NoSuchClass  # noqa: B018
    request = api.Request([1], 1)
    with pytest.raises(AttributeError):
        request.temperature  # noqa: B018
    with pytest.raises(AttributeError):
        request.temperature = 1
    with pytest.raises(AttributeError):
        api.FinishReason.EOS  # noqa: B018
    with pytest.raises(AttributeError):
        api.Result(is_final=True).finish_reason  # noqa: B018


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("SamplingConfig", {"top_p": 0.0}),
        ("SamplingConfig", {"temperature": -1.0}),
        ("SamplingConfig", {"top_k": 1.5}),
        ("SamplingConfig", {"top_k": np.int64(1)}),
        ("SamplingConfig", {"seed": -1}),
        ("SamplingConfig", {"repetition_penalty": 0.0}),
        ("Request", {"input_token_ids": [], "max_tokens": 1}),
        ("Request", {"input_token_ids": (1, 2), "max_tokens": 1}),
        ("Request", {"input_token_ids": [1], "max_tokens": 0}),
        ("Request", {"input_token_ids": [1], "max_tokens": 1, "stop_words": [2]}),
        ("Request", {"input_token_ids": [1], "max_tokens": 1, "priority": 1.5}),
        ("Request", {"input_token_ids": [1], "max_tokens": 1, "allotted_time_ms": 100}),
        ("Request", {"input_token_ids": [1], "max_tokens": 1, "embedding_bias": np.zeros(4)}),
        ("LookaheadDecodingConfig", {"max_window_size": 8, "max_ngram_size": 1, "max_verification_set_size": 1}),
    ],
)
def test_values_are_checked(api: Any, name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises((TypeError, RuntimeError)):
        getattr(api, name)(**arguments)


def test_the_executor_has_the_tables_methods(api: Any) -> None:
    public = {name for name in vars(api.Executor) if not name.startswith("_") and callable(getattr(api.Executor, name))}
    assert public - {"api", "faults", "world", "rank"} == {m for m in TABLE["methods"]["Executor"] if m[0] != "_"}


def test_an_end_id_is_not_given_out_and_stop_words_are(api: Any, tmp_path: Path) -> None:
    executor = _executor(api, tmp_path)
    output = api.OutputConfig(exclude_input_from_output=True)
    executor.enqueue_request(api.Request([1, 2], 8, output_config=output))
    tokens = _all_responses(executor, 1)[-1].result.output_token_ids[0]
    for options, expected, reason in (
        ({"end_id": tokens[3]}, tokens[: tokens.index(tokens[3])], "END_ID"),
        ({"stop_words": [[tokens[3]]]}, tokens[: tokens.index(tokens[3]) + 1], "STOP_WORDS"),
    ):
        executor.enqueue_request(api.Request([1, 2], 8, output_config=output, **options))
        result = _all_responses(executor, 1)[-1].result
        assert result.output_token_ids == [expected]
        assert result.finish_reasons == [api.FinishReason[reason]]
    executor.enqueue_request(api.Request([1, 2], 8))
    assert _all_responses(executor, 1)[-1].result.output_token_ids == [[1, 2, *tokens]]
    executor.shutdown()


def test_sequences_end_one_by_one(api: Any, tmp_path: Path) -> None:
    executor = _executor(api, tmp_path)
    sampling = api.SamplingConfig(num_return_sequences=3)
    library_id = executor.enqueue_request(api.Request([5], 4, streaming=True, sampling_config=sampling, client_id=77))
    responses = _all_responses(executor, 1)
    assert {r.request_id for r in responses} == {library_id}
    assert {r.client_id for r in responses} == {77}
    assert {r.result.sequence_index for r in responses} == {0, 1, 2}
    assert [r.result.is_final for r in responses] == [False] * (len(responses) - 1) + [True]
    assert sum(r.result.is_sequence_final for r in responses) == 3
    executor.shutdown()


def test_an_error_has_no_result(api: Any, tmp_path: Path) -> None:
    executor = _executor(api, tmp_path)
    output = api.OutputConfig(return_generation_logits=True)
    executor.enqueue_request(api.Request([5], 4, output_config=output))
    (response,) = _all_responses(executor, 1)
    assert response.has_error()
    assert "gather_generation_logits" in response.error_msg
    with pytest.raises(RuntimeError):
        response.result  # noqa: B018
    executor.shutdown()


def test_cancelling_ends_with_a_response(api: Any, tmp_path: Path) -> None:
    executor = _executor(stand_in_module(faults=Faults(step_s=0.005)), tmp_path)
    library_id = executor.enqueue_request(api_request(executor, 200))
    executor.await_responses(timeout=WAIT)
    executor.cancel_request(library_id)
    executor.cancel_request(library_id)
    result = _all_responses(executor, 1)[-1].result
    assert result.finish_reasons == [executor.api.FinishReason.CANCELLED]
    assert result.output_token_ids == [[]]
    assert executor.await_responses(timeout=timedelta(seconds=0.02)) == []
    executor.shutdown()


def api_request(executor: Any, max_tokens: int) -> Any:
    """A streamed request of the executor's own module."""
    return executor.api.Request([5], max_tokens, streaming=True)


def test_a_full_queue(tmp_path: Path) -> None:
    api = stand_in_module(faults=Faults(step_s=0.01))
    executor = _executor(api, tmp_path, max_batch_size=1, max_queue_size=2)
    requests = [api.Request([5], 20) for _ in range(6)]
    with pytest.raises(RuntimeError, match="Maximum queue size of 2 has been reached, please try again later"):
        executor.enqueue_requests(requests)
    executor.shutdown()


def test_shutdown_finishes_what_is_open_and_then_all_raise(api: Any, tmp_path: Path) -> None:
    executor = _executor(api, tmp_path)
    for _ in range(3):
        executor.enqueue_request(api.Request([5], 20))
    executor.shutdown()
    executor.shutdown()
    assert not executor.can_enqueue_requests()
    for call in (
        lambda: executor.enqueue_request(api.Request([5], 1)),
        lambda: executor.await_responses(timeout=WAIT),
        lambda: executor.cancel_request(1),
        executor.get_latest_iteration_stats,
    ):
        with pytest.raises(RuntimeError, match="Shutdown called"):
            call()


def test_iterations_are_told_once(api: Any, tmp_path: Path) -> None:
    executor = _executor(api, tmp_path, iter_stats_max_iterations=4)
    executor.enqueue_request(api.Request([5], 10))
    _all_responses(executor, 1)
    stats = executor.get_latest_iteration_stats()
    assert len(stats) == 4
    assert stats[-1].num_active_requests == 0
    assert stats[-1].kv_cache_stats.used_num_blocks == 0
    assert executor.get_latest_iteration_stats() == []
    executor.shutdown()


@pytest.mark.timing
def test_the_callback_runs_on_the_executors_thread_once_a_chunk(api: Any, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    processor = api.LogitsPostProcessorConfig(processor_batched=lambda *args: calls.append(args), replicate=False)
    executor = _executor(
        api, tmp_path, logits_post_processor_config=processor, max_num_tokens=16, enable_chunked_context=True
    )
    started = time.monotonic()
    executor.enqueue_request(api.Request([3] * 40, 2, logits_post_processor_name="batched", client_id=9))
    _all_responses(executor, 1)
    assert [len(args[2][0][0]) for args in calls] == [40, 40, 40, 41]  # three chunks of context
    assert {args[4][0] for args in calls} == {9}
    assert len(executor.callback_threads) == 1
    assert time.monotonic() - started < 5
    with pytest.raises(RuntimeError):
        executor.enqueue_request(api.Request([3], 2, logits_post_processor_name="another"))
    executor.shutdown()
