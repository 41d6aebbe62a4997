"""What the local executor is told at start. Built from the config by `briton.process.executors.create_executor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from briton.config.lookahead import LookaheadConfig

Precision = Literal["bf16", "f32"]
KVCacheDtype = Literal["bf16", "u8", "f32"]
SchedulerPolicy = Literal["guaranteed_no_evict", "max_utilization"]

# The public default, 0.9 of a GPU that nobody else uses, would take this machine from everybody else.
KV_CACHE_MEMORY_FRACTION = 0.25
BLOCK_SIZE = 32  # tokens; fixed by the plugin's paged attention


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """Limits in tokens and sequences; None means: from the model, or from the memory there is."""

    max_batch_size: int
    max_num_tokens: int
    max_queue_size: int
    max_seq_len: int | None = None
    policy: SchedulerPolicy = "guaranteed_no_evict"
    enable_chunked_context: bool = True
    max_priority: int = 20
    priority_aging_s: float = 10.0
    target_inter_token_s: float | None = None  # None: steps are as large as pays, whoever waits for a token
    default_max_tokens: int | None = None
    threads: int | None = None
    precision: Precision | None = None  # of activations; None: bf16 where the CPU has it
    kv_cache_dtype: KVCacheDtype | None = None  # None: as the engine was built
    kv_cache_tokens: int | None = None
    kv_cache_memory_bytes: int | None = None
    kv_cache_memory_fraction: float = KV_CACHE_MEMORY_FRACTION  # of the available memory, when no size is given
    lookahead: LookaheadConfig | None = None  # None: nothing is drafted
    enable_b10_lookahead: bool = False  # draft what followed the longest matching suffix, too
    max_draft_tokens: int = 0  # of one sequence in one step
