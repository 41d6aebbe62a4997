"""How an engine is run: `tensorrt_llm.bindings.executor.ExecutorConfig`, in LEADER mode, and the starting command.

Every rank builds the Executor with this same config. Defaults of the library stay unsaid, but for those that matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from briton.config.config import Config
from briton.model.shapes import ModelShapes
from briton.ranks.mpiexec import Mpiexec
from briton.trtllm.features import Features
from briton.trtllm.library_objects import Call, Given, Member
from briton.trtllm.lora import lora_cache
from briton.trtllm.parallel import Parallelism
from briton.trtllm.patches import Patches

BATCHED_POST_PROCESSOR = "batched_post_processor"  # the guides' callback on rank 0, one that does nothing elsewhere


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """The command that starts all ranks of an engine, and what is added to its environment."""

    command: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """What Briton itself does with requests, and the library does not know of."""

    served_model_name: str
    request_default_max_tokens: int | None  # of a request that names none; None: up to max_seq_len
    total_token_limit: int | None  # of prompts in flight, for the discontinued external drafts: without effect


def executor_config(
    config: Config, shapes: ModelShapes, features: Features, parallelism: Parallelism, patches: Patches
) -> Call:
    """ExecutorConfig. The executor module's caller gives BATCHED_POST_PROCESSOR when it makes it real."""
    arguments: dict[str, Any] = {
        "max_beam_width": 1,
        "scheduler_config": _scheduler_config(config, features, patches),
        "kv_cache_config": _kv_cache_config(config, shapes, features, patches),
        "enable_chunked_context": features.enable_chunked_context,
        "iter_stats_max_iterations": 1000,
        "request_stats_max_iterations": 0,
        "batching_type": Member("BatchingType", "INFLIGHT"),
        "max_batch_size": features.max_batch_size,
        "max_num_tokens": features.max_num_tokens,
        "parallel_config": Call(
            "ParallelConfig",
            {
                "communication_type": Member("CommunicationType", "MPI"),
                "communication_mode": Member("CommunicationMode", "LEADER"),
            },
        ),
        # On rank 0 only: guides hold state, and the other ranks are sent the sampled tokens.
        "logits_post_processor_config": Call(
            "LogitsPostProcessorConfig", {"processor_batched": Given(BATCHED_POST_PROCESSOR), "replicate": False}
        ),
        "max_queue_size": config.briton.max_queue_size,
        "gather_generation_logits": config.trt_llm.build.gather_all_token_logits,
        # Else the library would shorten every layer's window to what fits, and answer wrongly.
        "fail_fast_on_attention_window_too_large": True,
    }
    if features.lookahead is not None:
        sizes = features.lookahead
        lookahead = Call(
            "LookaheadDecodingConfig",
            {
                "max_window_size": sizes.window_size,
                "max_ngram_size": sizes.ngram_size,
                "max_verification_set_size": sizes.verification_set_size,
            },
        )
        arguments["decoding_config"] = Call(
            "DecodingConfig", {"decoding_mode": Call("DecodingMode.Lookahead"), "lookahead_decoding_config": lookahead}
        )
    cache = lora_cache(config, shapes, parallelism)
    if cache is not None:
        arguments["peft_cache_config"] = cache.config()
    return Call("ExecutorConfig", arguments)


def launch_plan(config: Config, parallelism: Parallelism) -> LaunchPlan:
    """LEADER mode: one process a rank, all the same; rank 0 serves. One rank needs no mpirun.

    With several, `briton engine` starts this by itself, and may be started by it.
    """
    program, mpi = ("python", "-m", "briton", "engine", "--config", str(config.path)), config.briton.mpi
    if parallelism.world_size == 1:
        return LaunchPlan(program, launch_env(config))
    mpirun = Mpiexec(mpi.mpiexec or "mpirun", "openmpi")  # the library's own images have Open MPI
    command = mpirun.command(program, parallelism.world_size, hostfile=config.mpi_hostfile, arguments=mpi.arguments)
    return LaunchPlan(command, launch_env(config))


def launch_env(config: Config) -> dict[str, str]:
    """What is set in the environment of every rank, unless it is set already."""
    return {"TLLM_LOG_LEVEL": config.briton.logging.level.upper()}


def _scheduler_config(config: Config, features: Features, patches: Patches) -> Call:
    arguments: dict[str, Any] = {
        "capacity_scheduler_policy": Member("CapacitySchedulerPolicy", config.scheduler_policy.value.upper())
    }
    if features.enable_chunked_context:
        arguments["context_chunking_policy"] = Member("ContextChunkingPolicy", "FIRST_COME_FIRST_SERVED")
    return Call("SchedulerConfig", {**arguments, **patches.scheduler})


def _kv_cache_config(config: Config, shapes: ModelShapes, features: Features, patches: Patches) -> Call:
    """Reuse is on as in the original server, where paged context attention allows it."""
    arguments: dict[str, Any] = {
        "enable_block_reuse": features.enable_block_reuse,
        "free_gpu_memory_fraction": config.kv_cache_memory_fraction,
    }
    host_bytes = config.kv_cache_host_memory_bytes
    if host_bytes is not None:
        arguments["host_cache_size"] = host_bytes
    if shapes.sliding_window is not None:  # one window a layer; the library repeats a shorter list
        windows = [window or features.sequence_tokens for window in shapes.attention_windows]
        arguments["max_attention_window"] = windows[: shapes.sliding_window_pattern]
    return Call("KvCacheConfig", {**arguments, **patches.kv_cache, "enable_block_reuse": features.enable_block_reuse})
