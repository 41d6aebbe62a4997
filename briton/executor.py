"""The Executor protocol, the seam between the engine and whatever runs the model; and the choice of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from briton.config import Config
from briton.config.local_target import step_tokens
from briton.config.serving import check_servable, choose_executor
from briton.types import ExecutorStats, GenerationRequest, ModelInfo, TokenChunk

if TYPE_CHECKING:
    from briton.job.seat import Seat
    from briton.local.settings import LocalSettings


class Executor(Protocol):
    """Runs requests on one model. Knows token ids only: no text, no sockets, no asyncio.

    It has the shape of TensorRT-LLM's executor (enqueue_request, cancel_request, await_responses,
    get_latest_iteration_stats, shutdown). `tests/conformance.py` is its specification.
    """

    info: ModelInfo

    def submit(self, request: GenerationRequest) -> None:
        """Accept a request without blocking. Its chunks may come before this returns.

        Raises InvalidRequest, Unsupported or QueueFull, and then no chunk ever comes; EngineDead after a failure or
        shutdown.
        """
        ...

    def cancel(self, request_id: int) -> None:
        """End a request soon: its final chunk says CANCELLED. Idempotent; unknown and finished ids are fine."""
        ...

    def await_chunks(self, timeout: float) -> list[TokenChunk]:
        """Wait up to `timeout` seconds for chunks of any request, oldest first; empty when none came.

        For one caller thread. Raises EngineDead when the executor can make no more progress and all chunks were
        delivered.
        """
        ...

    def stats(self) -> ExecutorStats:
        """A snapshot. From any thread, at any time."""
        ...

    def shutdown(self) -> None:
        """End every open request (CANCELLED) and free the model. Idempotent."""
        ...


def create_executor(config: Config, engine_dir: Path, seat: Seat | None = None) -> Executor:
    """Load an engine directory into the executor that the config asks for, and start it.

    With a `seat` this is rank 0 of several, and the others call `follow_executor` at the same time. Raises Unsupported
    where this version cannot serve the config, BuildError or ConfigError where it cannot run here.
    """
    check_servable(config)
    communicator, rank_stats = (None, tuple) if seat is None else (seat.communicator, seat.member.all_stats)
    if choose_executor(config).name == "trtllm":
        from briton.trtllm.loader import create_trtllm_executor

        return create_trtllm_executor(config, engine_dir, rank_stats)
    from briton.local.loader import load_local_executor  # imports openvino

    return load_local_executor(engine_dir, local_settings(config), config.served_model_name, communicator, rank_stats)


def follow_executor(config: Config, engine_dir: Path, seat: Seat) -> None:
    """On ranks other than 0: do rank 0's executor's bidding until it shuts down. Raises as `create_executor` does, and
    what breaks in a step."""
    check_servable(config)
    if seat.communicator is None:
        from briton.trtllm.loader import follow_trtllm_executor

        follow_trtllm_executor(config, engine_dir, seat.member.serve)
        return
    from briton.local.loader import follow_local_executor  # imports openvino

    follow_local_executor(engine_dir, local_settings(config), seat.communicator, seat.member.serve)


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
