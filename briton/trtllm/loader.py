"""From an engine directory to a running TrtllmExecutor, or to one of the ranks that follow it."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from briton.config import Config
from briton.engine_dir import EngineManifest, TrtllmBuild, load_manifest
from briton.errors import BuildError, ConfigError, InvalidRequest, Unsupported
from briton.generation_config import GENERATION_CONFIG, default_sampling
from briton.trtllm.engine_check import check_engine
from briton.trtllm.executor import TrtllmExecutor
from briton.trtllm.executor_config import executor_config
from briton.trtllm.library import Library, first_line, load_library
from briton.trtllm.logits import LogitsProcessor, mask_sizes, no_op
from briton.trtllm.request import RequestLimits
from briton.trtllm.settings import TrtllmSettings
from briton.trtllm.stats import StatsBook
from briton.types import ModelInfo, SamplingParams
from briton.validation import check_sampling

logger = logging.getLogger(__name__)

WARM_UP_S = 600.0  # for one token, after which the library has told the size of its KV cache


def create_trtllm_executor(config: Config, engine_dir: Path, library: Library | None = None) -> TrtllmExecutor:
    """Load an engine into TensorRT-LLM, on rank 0. Raises ConfigError or BuildError, naming both values, where
    engine, config and machine do not fit together, and where the library refuses."""
    library = library or load_library()
    if library.rank != 0:
        raise ConfigError(f"rank {library.rank} cannot serve: only rank 0 does", "briton.executor")
    return start_executor(engine_dir, trtllm_settings(config), config.served_model_name, library)


def follow_trtllm_executor(config: Config, engine_dir: Path, library: Library | None = None) -> None:
    """A rank other than 0: load its part of the engine, and return when rank 0 has shut down."""
    library, settings = library or load_library(), trtllm_settings(config)
    if library.rank == 0:
        raise ConfigError("rank 0 cannot follow: it serves", "briton.executor")
    check_engine(engine_dir, load_manifest(engine_dir), settings, library)
    # The library joins the thread that rank 0 drives; only rank 0 can end it.
    _load(engine_dir, settings, library, no_op).shutdown()


def trtllm_settings(config: Config) -> TrtllmSettings:
    """What of a config the executor is told. Raises Unsupported for a speculator that the library cannot run."""
    speculator = config.speculator
    lookahead = None if speculator is None else speculator.lookahead
    if lookahead is not None and lookahead.ngram_size == 1:
        raise Unsupported(
            f"lookahead_ngram_size is 1 in a speculator of ({lookahead.window_size}, 1, "
            f"{lookahead.verification_set_size}): TensorRT-LLM needs at least 2",
            "trt_llm.build.speculator.lookahead_ngram_size",
        )
    host_bytes = getattr(config.trt_llm.runtime, "kv_cache_host_memory_bytes", None)  # v1 alone has it
    return TrtllmSettings(
        max_batch_size=config.max_batch_size,
        max_num_tokens=config.max_num_tokens,
        max_queue_size=config.briton.max_queue_size,
        max_seq_len=config.max_seq_len,
        policy=config.scheduler_policy.value,
        enable_chunked_context=config.enable_chunked_context,
        default_max_tokens=config.default_max_tokens,
        kv_cache_free_gpu_memory_fraction=config.kv_cache_memory_fraction,
        kv_cache_host_memory_bytes=host_bytes,
        lookahead=lookahead,
        gather_generation_logits=config.trt_llm.build.gather_all_token_logits,
        tensor_parallel_size=config.tensor_parallel_size,
        pipeline_parallel_size=config.world_size // config.tensor_parallel_size,
    )


def start_executor(directory: Path, settings: TrtllmSettings, model_name: str, library: Library) -> TrtllmExecutor:
    """`create_trtllm_executor`, from settings."""
    manifest = load_manifest(directory)
    build = check_engine(directory, manifest, settings, library)
    sizes = mask_sizes(manifest.model.vocab_size, settings.max_batch_size)
    processor = LogitsProcessor(library.mask_device(sizes), sizes, manifest.model.vocab_size)
    engine = _load(directory, settings, library, processor)
    try:
        num_blocks, block_size = _warm_up(engine, library)
        info = _model_info(directory, manifest, build, settings, model_name, num_blocks, block_size)
    except BaseException:
        with contextlib.suppress(Exception):
            engine.shutdown()
        raise
    limits = RequestLimits(
        vocab_size_padded=build.vocab_size_padded,
        enable_chunked_context=settings.enable_chunked_context,
        gather_generation_logits=settings.gather_generation_logits,
    )
    logger.info(
        "TensorRT-LLM %s on %d ranks: the KV cache holds %d tokens in blocks of %d",
        library.version,
        library.world_size,
        info.kv_cache_tokens,
        info.kv_block_size,
    )
    return TrtllmExecutor(engine, library, info, limits, processor)


def _load(directory: Path, settings: TrtllmSettings, library: Library, processor: Any) -> Any:
    """The library's Executor. All ranks build it, and wait for each other there."""
    trtllm = library.trtllm
    try:
        config = executor_config(library, settings, processor)
        return trtllm.Executor(directory, trtllm.ModelType.DECODER_ONLY, config)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BuildError(f"TensorRT-LLM cannot load {directory}: {first_line(error)}") from error


def _warm_up(engine: Any, library: Library) -> tuple[int, int]:
    """Generate one token. (Blocks of the KV cache, tokens in one.) Raises BuildError when none comes."""
    trtllm, book = library.trtllm, StatsBook()
    deadline = time.monotonic() + WARM_UP_S
    try:
        engine.enqueue_request(trtllm.Request([0], 1, sampling_config=trtllm.SamplingConfig(top_k=1)))
        while time.monotonic() < deadline:
            for response in engine.await_responses(timeout=timedelta(seconds=1)):
                if response.has_error():
                    raise BuildError(f"TensorRT-LLM cannot generate: {response.error_msg}")
                if response.result.is_final:
                    book.add_iterations(engine.get_latest_iteration_stats())
                    return book.kv_cache
    except RuntimeError as error:
        raise BuildError(f"TensorRT-LLM cannot generate: {first_line(error)}") from error
    raise BuildError(f"TensorRT-LLM has not generated one token within {WARM_UP_S:.0f} s")


def _model_info(
    directory: Path,
    manifest: EngineManifest,
    build: TrtllmBuild,
    settings: TrtllmSettings,
    model_name: str,
    num_blocks: int,
    block_size: int,
) -> ModelInfo:
    if num_blocks * block_size == 0:
        raise BuildError(f"{directory}: TensorRT-LLM tells of no KV cache: was the engine built with paged_kv_cache?")
    longest = min(settings.max_seq_len or build.max_seq_len, build.max_seq_len)
    info = ModelInfo(
        model_name=model_name,
        executor="trtllm",
        architecture=manifest.model.architecture,
        vocab_size=manifest.model.vocab_size,
        max_seq_len=min(longest, num_blocks * block_size),
        max_batch_size=settings.max_batch_size,
        max_num_tokens=settings.max_num_tokens,
        max_queue_size=settings.max_queue_size,
        kv_cache_tokens=num_blocks * block_size,
        kv_block_size=block_size,
        stop_token_ids=manifest.stop_token_ids,
        default_sampling=default_sampling(directory),
        default_max_tokens=settings.default_max_tokens,
        tensor_parallel_size=settings.tensor_parallel_size,
        weights_dtype=manifest.weights_dtype,
        kv_cache_dtype=manifest.kv_cache_dtype,
        tokenizer_hash=manifest.tokenizer_hash,
        lookahead=settings.lookahead,
        max_draft_tokens=build.max_draft_len,
        lookahead_with_guides=settings.lookahead is None,
    )
    if info.lookahead is not None:  # such an engine decodes greedily: what a request does not say must not be refused
        info = replace(info, default_sampling=SamplingParams(temperature=0.0))
    try:
        check_sampling(info.default_sampling, info)
    except (InvalidRequest, TypeError) as error:
        raise BuildError(f"{directory / GENERATION_CONFIG}: {error}") from None
    return info
