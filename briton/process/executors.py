"""The factory of executors: makes the one that a config asks for, and tells it what the config says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from briton.config.config import Config
from briton.config.local_target import step_tokens
from briton.engine.executor import Executor
from briton.process.executor_choice import check_servable, choose_executor

if TYPE_CHECKING:
    from briton.local.settings import LocalSettings
    from briton.ranks.rank_context import RankContext


def create_executor(config: Config, engine_dir: Path, rank_context: RankContext | None = None) -> Executor:
    """Load an engine directory into the executor that the config asks for, and start it.

    With a `rank_context` this is rank 0 of several, and the others call `follow_executor` at the same time. Raises
    Unsupported where this version cannot serve the config, BuildError or ConfigError where it cannot run here.
    """
    check_servable(config)
    communicator, rank_stats = (
        (None, tuple) if rank_context is None else (rank_context.communicator, rank_context.member.all_stats)
    )
    if choose_executor(config).name == "trtllm":
        from briton.trtllm.loader import create_trtllm_executor

        return create_trtllm_executor(config, engine_dir, rank_stats)
    from briton.local.loader import load_local_executor  # imports openvino

    return load_local_executor(engine_dir, local_settings(config), config.served_model_name, communicator, rank_stats)


def follow_executor(config: Config, engine_dir: Path, rank_context: RankContext) -> None:
    """On ranks other than 0: do rank 0's executor's bidding until it shuts down. Raises as `create_executor` does, and
    what breaks in a step."""
    check_servable(config)
    if rank_context.communicator is None:
        from briton.trtllm.loader import follow_trtllm_executor

        follow_trtllm_executor(config, engine_dir, rank_context.member.serve)
        return
    from briton.local.loader import follow_local_executor  # imports openvino

    follow_local_executor(engine_dir, local_settings(config), rank_context.communicator, rank_context.member.serve)


def local_settings(config: Config) -> LocalSettings:
    """What the local executor is told."""
    from briton.local.settings import KV_CACHE_MEMORY_FRACTION, LocalSettings

    local = config.briton.local
    speculator = config.speculator if config.speculator is not None and config.speculator.drafts else None
    return LocalSettings(
        max_batch_size=config.max_batch_size,
        max_num_tokens=step_tokens(config),
        max_queue_size=config.briton.max_queue_size,
        max_seq_len=config.max_seq_len,
        policy=config.scheduler_policy.value,
        enable_chunked_context=config.enable_chunked_context,
        max_priority=config.briton.max_priority,
        priority_aging_s=config.briton.priority_aging_s,
        target_inter_token_s=local.target_inter_token_s,
        default_max_tokens=config.default_max_tokens,
        threads=local.threads,
        precision=None if local.precision == "auto" else local.precision,
        kv_cache_dtype=local.kv_cache_dtype,
        kv_cache_tokens=local.kv_cache_tokens,
        kv_cache_memory_bytes=local.kv_cache_memory_bytes,
        kv_cache_memory_fraction=min(KV_CACHE_MEMORY_FRACTION, config.kv_cache_memory_fraction),
        lookahead=speculator.lookahead if speculator is not None else None,
        enable_b10_lookahead=bool(speculator is not None and speculator.enable_b10_lookahead),
        max_draft_tokens=(speculator.num_draft_tokens or 0) if speculator is not None else 0,
    )
