"""From TrtllmSettings to the library's ExecutorConfig."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from briton.trtllm.library import Library
from briton.trtllm.request import lookahead_config
from briton.trtllm.settings import TrtllmSettings

STATS_ITERATIONS = 1000  # kept by the library until they are asked for: four seconds and more of the fastest steps


def executor_config(library: Library, settings: TrtllmSettings, processor: Callable[..., None]) -> Any:
    """The library's ExecutorConfig, the same on every rank but for the processor."""
    trtllm = library.trtllm
    options: dict[str, Any] = {
        "max_beam_width": 1,
        "scheduler_config": trtllm.SchedulerConfig(
            capacity_scheduler_policy=getattr(trtllm.CapacitySchedulerPolicy, settings.policy.upper())
        ),
        "kv_cache_config": trtllm.KvCacheConfig(
            enable_block_reuse=settings.enable_block_reuse,
            max_tokens=settings.kv_cache_tokens,
            free_gpu_memory_fraction=settings.kv_cache_free_gpu_memory_fraction,
            host_cache_size=settings.kv_cache_host_memory_bytes,
        ),
        "enable_chunked_context": settings.enable_chunked_context,
        "iter_stats_max_iterations": STATS_ITERATIONS,
        "batching_type": trtllm.BatchingType.INFLIGHT,
        "max_batch_size": settings.max_batch_size,
        "max_num_tokens": settings.max_num_tokens,
        "parallel_config": trtllm.ParallelConfig(trtllm.CommunicationType.MPI, trtllm.CommunicationMode.LEADER),
        # A guide has a state: one rank keeps it, and the tokens that it samples are sent to the others.
        "logits_post_processor_config": trtllm.LogitsPostProcessorConfig(processor_batched=processor, replicate=False),
        "max_queue_size": settings.max_queue_size,
        "gather_generation_logits": settings.gather_generation_logits,
    }
    if settings.lookahead is not None:
        options["decoding_config"] = trtllm.DecodingConfig(
            decoding_mode=trtllm.DecodingMode.Lookahead(),
            lookahead_decoding_config=lookahead_config(trtllm, settings.lookahead),
        )
    return trtllm.ExecutorConfig(**options)
