"""What the library checks of values that are given: types as nanobind does, ranges as samplingConfig.cpp and its
neighbours do."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np


def assertion(condition: bool, text: str) -> None:
    """TLLM_CHECK."""
    if not condition:
        raise RuntimeError(f"[TensorRT-LLM][ERROR] Assertion failed: {text} (standIn.cpp:1)\n1  0x7f stack trace")


def integer(low: int, high: int) -> Callable[[Any], None]:
    """An int that fits, or None."""

    def check(value: Any) -> None:
        if value is not None and (type(value) is not int or not low <= value <= high):
            raise TypeError(f"incompatible function arguments: an integer in [{low}, {high}], not {value!r}")

    return check


def number(low: float, high: float, *, above: bool = False) -> Callable[[Any], None]:
    """A float within limits, or None; `above`: the lower one is excluded."""

    def check(value: Any) -> None:
        if value is None:
            return
        if type(value) not in (int, float):
            raise TypeError(f"incompatible function arguments: a float, not {value!r}")
        assertion(low < value <= high if above else low <= value <= high, f"{value} in [{low}, {high}]")

    return check


def token_ids(value: Any) -> None:
    """list[int]."""
    if type(value) is not list or not all(type(i) is int and -(2**31) <= i < 2**31 for i in value):
        raise TypeError(f"incompatible function arguments: list[int], not {value!r}")


def words(value: Any) -> None:
    """list[list[int]], or None."""
    if value is None:
        return
    if type(value) is not list:
        raise TypeError(f"incompatible function arguments: list[list[int]], not {value!r}")
    for word in value:
        token_ids(word)


def _prompt(value: Any) -> None:
    token_ids(value)
    assertion(len(value) > 0, "!mInputTokenIds.empty()")


def _flag(value: Any) -> None:
    if type(value) is not bool:
        raise TypeError(f"incompatible function arguments: a bool, not {value!r}")


def _bias(value: Any) -> None:
    if value is not None:
        if not isinstance(value, np.ndarray) or value.dtype != np.float32:
            raise TypeError("incompatible function arguments: a float32 tensor")
        assertion(value.ndim == 1, "bias.value().getShape().size() == 1")


def _duration(value: Any) -> None:
    if value is not None and not isinstance(value, timedelta):
        raise TypeError(f"incompatible function arguments: a timedelta, not {value!r}")


def _callable(value: Any) -> None:
    if value is not None and not callable(value):
        raise TypeError("incompatible function arguments: a callable")


def path(value: Any) -> None:
    """os.PathLike or str."""
    if not isinstance(value, str | Path):
        raise TypeError(f"incompatible function arguments: a path, not {value!r}")


_UINT64 = integer(0, 2**64 - 1)
_INT32 = integer(-(2**31), 2**31 - 1)
_COUNT = integer(1, 2**31 - 1)

CHECKS: dict[tuple[str, str], Callable[[Any], None]] = {
    ("SamplingConfig", "top_k"): integer(0, 2**31 - 1),
    ("SamplingConfig", "top_p"): number(0, 1, above=True),
    ("SamplingConfig", "min_p"): number(0, 1),
    ("SamplingConfig", "temperature"): number(0, math.inf),
    ("SamplingConfig", "min_tokens"): integer(0, 2**31 - 1),
    ("SamplingConfig", "repetition_penalty"): number(0, math.inf, above=True),
    ("SamplingConfig", "presence_penalty"): number(-math.inf, math.inf),
    ("SamplingConfig", "frequency_penalty"): number(-math.inf, math.inf),
    ("SamplingConfig", "seed"): _UINT64,
    ("SamplingConfig", "num_return_sequences"): _COUNT,
    ("Request", "input_token_ids"): _prompt,
    ("Request", "max_tokens"): _COUNT,
    ("Request", "streaming"): _flag,
    ("Request", "end_id"): _INT32,
    ("Request", "bad_words"): words,
    ("Request", "stop_words"): words,
    ("Request", "embedding_bias"): _bias,
    ("Request", "client_id"): _UINT64,
    ("Request", "priority"): number(0, 1),
    ("Request", "allotted_time_ms"): _duration,
    ("Request", "cache_salt_id"): _UINT64,
    ("LoraConfig", "task_id"): _UINT64,
    ("OutputConfig", "return_generation_logits"): _flag,
    ("OutputConfig", "exclude_input_from_output"): _flag,
    ("KvCacheConfig", "max_tokens"): _COUNT,
    ("KvCacheConfig", "free_gpu_memory_fraction"): number(0, 1),
    ("KvCacheConfig", "host_cache_size"): _UINT64,
    ("ExecutorConfig", "max_batch_size"): _COUNT,
    ("ExecutorConfig", "max_num_tokens"): _COUNT,
    ("ExecutorConfig", "max_queue_size"): _INT32,
    ("ExecutorConfig", "gather_generation_logits"): _flag,
    ("LogitsPostProcessorConfig", "processor_batched"): _callable,
    ("LogitsPostProcessorConfig", "replicate"): _flag,
    ("LookaheadDecodingConfig", "max_window_size"): integer(1, 2**31 - 1),
    ("LookaheadDecodingConfig", "max_ngram_size"): integer(1, 2**31 - 1),
    ("LookaheadDecodingConfig", "max_verification_set_size"): integer(0, 2**31 - 1),
}


def _lookahead(config: Any) -> None:
    assertion(config.max_ngram_size > 1 or config.max_window_size == 1, "ngramSize=1 requires windowSize=1")


def _lora(config: Any) -> None:
    """loraConfig.cpp."""
    if config.config is not None:
        assertion(config.config.ndim == 2, "Expected config tensor to have 2 dimensions")
        assertion(config.config.dtype == np.int32, "Expected lora config tensor to have type kINT32")
    if config.weights is not None:
        assertion(config.config is not None, "Request for LoRA inference with lora weights must also have lora config")
        assertion(config.weights.ndim == 2, "Expected weights tensor to have 2 dimensions")
        assertion(len(config.config) == len(config.weights), "Expected dim 0 of both to have the same size")


TOGETHER: dict[str, Callable[[Any], None]] = {"LookaheadDecodingConfig": _lookahead, "LoraConfig": _lora}
