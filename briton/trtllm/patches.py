"""`patch_kwargs` of a v2 config: keywords of TensorRT-LLM's LLM, of which the executor of an engine knows some.

Known are kv_cache_config, scheduler_config, and a speculative_config of lookahead decoding, with the library's own
field names. Whatever else stands there belongs to the library's PyTorch backend: it is named, and left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from briton.config.config import Config
from briton.config.lookahead import LookaheadConfig
from briton.config.trt_llm import TRTLLMConfigurationV2
from briton.errors import ConfigError
from briton.trtllm.library_objects import Member

FIELD = "trt_llm.runtime.patch_kwargs"

_KV_CACHE = {  # LLM API's KvCacheConfig -> type; the names are those of the executor's
    "enable_block_reuse": bool,
    "max_tokens": int,
    "max_attention_window": list,
    "sink_token_length": int,
    "free_gpu_memory_fraction": float,
    "host_cache_size": int,
    "onboard_blocks": bool,
    "secondary_offload_min_priority": int,
    "event_buffer_max_size": int,
    "enable_partial_reuse": bool,
    "copy_on_partial_reuse": bool,
    "use_uvm": bool,
}
_SCHEDULER = {
    "capacity_scheduler_policy": ("CapacitySchedulerPolicy", ("MAX_UTILIZATION", "GUARANTEED_NO_EVICT")),
    "context_chunking_policy": ("ContextChunkingPolicy", ("FIRST_COME_FIRST_SERVED", "EQUAL_PROGRESS")),
}
_KV_CACHE_DTYPES = {"auto": None, "fp8": "FP8", "int8": "INT8"}
_LOOKAHEAD = ("max_window_size", "max_ngram_size", "max_verification_set_size")


@dataclass(frozen=True, slots=True)
class Patches:
    """What patch_kwargs asks of the executor, in its names; empty for a v1 config."""

    kv_cache: Mapping[str, Any] = field(default_factory=dict)  # arguments of KvCacheConfig
    scheduler: Mapping[str, Member] = field(default_factory=dict)  # arguments of SchedulerConfig
    kv_cache_quant_algo: str | None = None
    lookahead: LookaheadConfig | None = None
    without_effect: tuple[str, ...] = ()  # paths of the keys that the executor does not know


def patches_of(config: Config) -> Patches:
    """Read patch_kwargs. Raises ConfigError, naming the key, for a value that a known key cannot have."""
    if not isinstance(config.trt_llm, TRTLLMConfigurationV2):
        return Patches()
    given = config.trt_llm.runtime.patch_kwargs
    ignored = [
        name
        for name, value in given.items()
        if name not in ("kv_cache_config", "scheduler_config", "speculative_config") or not isinstance(value, dict)
    ]
    kv_cache, scheduler, speculative = (
        value if isinstance(value := given.get(name), dict) else {}
        for name in ("kv_cache_config", "scheduler_config", "speculative_config")
    )
    arguments: dict[str, Any] = {}
    for name, value in kv_cache.items():
        if name == "dtype":
            known = isinstance(value, str) and value in _KV_CACHE_DTYPES
            _check(known, f"kv_cache_config.{name}", f"one of {', '.join(_KV_CACHE_DTYPES)}", value)
        elif name in _KV_CACHE:
            arguments[name] = _typed(f"kv_cache_config.{name}", _KV_CACHE[name], value)
        else:
            ignored.append(f"kv_cache_config.{name}")
    policies: dict[str, Member] = {}
    for name, value in scheduler.items():
        if name in _SCHEDULER:
            enum, members = _SCHEDULER[name]
            _check(value in members, f"scheduler_config.{name}", f"one of {', '.join(members)}", value)
            policies[name] = Member(enum, value)
        else:
            ignored.append(f"scheduler_config.{name}")
    lookahead = None
    if speculative.get("decoding_type") == "Lookahead":
        sizes = [_typed(f"speculative_config.{name}", int, speculative.get(name)) for name in _LOOKAHEAD]
        lookahead = LookaheadConfig(*sizes)
    elif speculative:
        ignored.append("speculative_config")
    return Patches(
        kv_cache=arguments,
        scheduler=policies,
        kv_cache_quant_algo=_KV_CACHE_DTYPES[kv_cache.get("dtype", "auto")],
        lookahead=lookahead,
        without_effect=tuple(ignored),
    )


def _typed(key: str, kind: type, value: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    is_bool = isinstance(value, bool)
    _check(isinstance(value, kind) and is_bool == (kind is bool), key, f"of type {kind.__name__}", value)
    if key.endswith(".free_gpu_memory_fraction"):
        _check(0 < value <= 1, key, "above 0 and at most 1", value)
    if kind is int:
        low = 1 if key.rpartition(".")[2] in ("max_tokens", *_LOOKAHEAD) else 0
        _check(value >= low, key, f"at least {low}", value)
    if kind is list:
        windows = bool(value) and all(type(window) is int and window > 0 for window in value)
        _check(windows, key, "a list of numbers of tokens", value)
    return value


def _check(holds: bool, key: str, must_be: str, value: Any) -> None:
    if not holds:
        raise ConfigError(f"{FIELD}.{key} must be {must_be}, not {value!r}", f"{FIELD}.{key}")
