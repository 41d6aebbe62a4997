"""What the TensorRT-LLM executor is told at start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from briton.types import LookaheadConfig

SchedulerPolicy = Literal["guaranteed_no_evict", "max_utilization"]


@dataclass(frozen=True, slots=True)
class TrtllmSettings:
    """Limits in tokens and sequences; None means the library's or the engine's own."""

    max_batch_size: int
    max_num_tokens: int
    max_queue_size: int
    max_seq_len: int | None = None
    policy: SchedulerPolicy = "guaranteed_no_evict"
    enable_chunked_context: bool = True  # needs an engine built with paged context FMHA
    enable_block_reuse: bool = True
    default_max_tokens: int | None = None
    kv_cache_tokens: int | None = None  # None: as many as the fraction holds
    kv_cache_free_gpu_memory_fraction: float = 0.9  # of the memory that weights and activations leave
    kv_cache_host_memory_bytes: int | None = None  # None: blocks are not kept in host memory
    lookahead: LookaheadConfig | None = None  # the same as the engine's; None: the engine has none
    gather_generation_logits: bool = False  # needed for log probabilities; costs device memory
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.tensor_parallel_size * self.pipeline_parallel_size
