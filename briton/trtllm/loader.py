"""From an engine directory to a running TrtllmExecutor, or to one of the ranks that follow it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from briton.config.config import Config
from briton.config.environment import set_defaults
from briton.engine.types import ModelInfo, RankStats, SamplingParams
from briton.engine.validation import check_sampling
from briton.errors import BuildError, ConfigError, InvalidRequest
from briton.model.generation_config import GENERATION_CONFIG, default_sampling
from briton.trtllm.engine_check import BuiltEngine, check_engine, open_engine
from briton.trtllm.executor import TrtllmExecutor
from briton.trtllm.executor_plan import BATCHED_POST_PROCESSOR, launch_env
from briton.trtllm.library import Library, first_line, load_library
from briton.trtllm.library_objects import EXECUTOR, make
from briton.trtllm.logits import LogitsProcessor, mask_sizes, no_op
from briton.trtllm.lora import read_adapter
from briton.trtllm.request import RequestLimits
from briton.trtllm.stats import StatsBook

logger = logging.getLogger(__name__)

WARM_UP_S = 600.0  # for one token, after which the library has told the size of its KV cache


def create_trtllm_executor(
    config: Config,
    engine_dir: Path,
    rank_stats: Callable[[], tuple[RankStats, ...]] = tuple,
    library: Library | None = None,
) -> TrtllmExecutor:
    """Load an engine into TensorRT-LLM, on rank 0; `rank_stats` are those of all ranks. Raises ConfigError or
    BuildError, naming both values, where engine, config and machine do not fit together, and where the library
    refuses."""
    library = library or _load_library(config)
    if library.rank != 0:
        raise ConfigError(f"rank {library.rank} cannot serve: only rank 0 does", "briton.executor")
    built = open_engine(config, engine_dir, library.rank)
    for note in built.plan.features.notes:
        logger.warning("%s", note)
    return start_executor(built, library, rank_stats)


def follow_trtllm_executor(
    config: Config, engine_dir: Path, on_loaded: Callable[[], None], library: Library | None = None
) -> None:
    """A rank other than 0: load its part of the engine, and return when rank 0 has shut down."""
    library = library or _load_library(config)
    if library.rank == 0:
        raise ConfigError("rank 0 cannot follow: it serves", "briton.executor")
    built = open_engine(config, engine_dir, library.rank)
    check_engine(built, library)
    engine = _load(built, library, no_op)
    on_loaded()
    engine.shutdown()  # the library joins the thread that rank 0 drives; only rank 0 can end it


def start_executor(
    built: BuiltEngine, library: Library, rank_stats: Callable[[], tuple[RankStats, ...]] = tuple
) -> TrtllmExecutor:
    """`create_trtllm_executor`, of an engine that is planned already."""
    check_engine(built, library)
    vocab_size, features = built.plan.shapes.vocab_size, built.plan.features
    sizes = mask_sizes(vocab_size, features.max_batch_size)
    processor = LogitsProcessor(library.mask_device(sizes), sizes, vocab_size)
    engine = _load(built, library, processor)
    try:
        num_blocks, block_size = _warm_up(engine, library)
        _load_adapters(built, engine, library)
        info = _model_info(built, num_blocks, block_size)
    except BaseException:
        with contextlib.suppress(Exception):
            engine.shutdown()
        raise
    limits = RequestLimits(
        vocab_size_padded=built.build.vocab_size_padded,
        enable_chunked_context=features.enable_chunked_context,
        gather_generation_logits=built.plan.executor_config["gather_generation_logits"],
        lora_tasks={adapter.name: adapter.task_id for adapter in built.plan.build.lora_adapters},
    )
    logger.info(
        "TensorRT-LLM %s on %d ranks: the KV cache holds %d tokens in blocks of %d",
        library.version,
        library.world_size,
        info.kv_cache_tokens,
        info.kv_block_size,
    )
    return TrtllmExecutor(engine, library, info, limits, processor, rank_stats)


def _load_library(config: Config) -> Library:
    set_defaults(launch_env(config))  # the library reads it when it is imported
    return load_library()


def _load(built: BuiltEngine, library: Library, processor: Any) -> Any:
    """The library's Executor. All ranks build it, and wait for each other there. Its constructor keeps the
    interpreter's lock for as long as that takes: until then no other thread of this process runs."""
    trtllm = library.trtllm
    try:
        config = make(built.plan.executor_config, {BATCHED_POST_PROCESSOR: processor}, {EXECUTOR: trtllm})
        return trtllm.Executor(built.directory, trtllm.ModelType.DECODER_ONLY, config)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BuildError(f"TensorRT-LLM cannot load {built.directory}: {first_line(error)}") from error


def _warm_up(engine: Any, library: Library) -> tuple[int, int]:
    """Generate one token. (Blocks of the KV cache, tokens in one.) Raises BuildError when none comes."""
    book = StatsBook()
    _generate_one(engine, library, "generate")
    try:
        book.add_iterations(engine.get_latest_iteration_stats())
    except RuntimeError as error:
        raise BuildError(f"TensorRT-LLM cannot generate: {first_line(error)}") from error
    return book.kv_cache


def _load_adapters(built: BuiltEngine, engine: Any, library: Library) -> None:
    """Give every adapter's weights to the library, with a request for one token: its caches keep them, and later
    requests name the task alone. Raises BuildError."""
    for adapter in built.plan.build.lora_adapters:
        weights, description = (library.tensor(array) for array in read_adapter(built.directory, adapter.name))
        what = f"load the LoRA adapter {adapter.name}"
        try:
            lora = library.trtllm.LoraConfig(adapter.task_id, weights, description)
        except (RuntimeError, TypeError, ValueError) as error:
            raise BuildError(f"TensorRT-LLM cannot {what}: {first_line(error)}") from error
        _generate_one(engine, library, what, lora_config=lora)


def _generate_one(engine: Any, library: Library, what: str, **options: Any) -> None:
    """One token, and the time to make it. Raises BuildError, which says `what` cannot be done."""
    trtllm, deadline = library.trtllm, time.monotonic() + WARM_UP_S
    try:
        engine.enqueue_request(trtllm.Request([0], 1, sampling_config=trtllm.SamplingConfig(top_k=1), **options))
        while time.monotonic() < deadline:
            for response in engine.await_responses(timeout=timedelta(seconds=1)):
                if response.has_error():
                    raise BuildError(f"TensorRT-LLM cannot {what}: {first_line(RuntimeError(response.error_msg))}")
                if response.result.is_final:
                    return
    except RuntimeError as error:
        raise BuildError(f"TensorRT-LLM cannot {what}: {first_line(error)}") from error
    raise BuildError(f"TensorRT-LLM has not generated one token within {WARM_UP_S:.0f} s")


def _model_info(built: BuiltEngine, num_blocks: int, block_size: int) -> ModelInfo:
    directory, manifest, plan = built.directory, built.manifest, built.plan
    if num_blocks * block_size == 0:
        raise BuildError(f"{directory}: TensorRT-LLM tells of no KV cache: was the engine built with paged_kv_cache?")
    features = plan.features
    info = ModelInfo(
        model_name=plan.serving.served_model_name,
        executor="trtllm",
        architecture=plan.shapes.architecture,
        vocab_size=plan.shapes.vocab_size,
        max_seq_len=min(features.max_seq_len, num_blocks * block_size),
        max_batch_size=features.max_batch_size,
        max_num_tokens=features.max_num_tokens,
        max_queue_size=plan.executor_config["max_queue_size"],
        kv_cache_tokens=num_blocks * block_size,
        kv_block_size=block_size,
        stop_token_ids=manifest.stop_token_ids,
        default_sampling=default_sampling(directory),
        default_max_tokens=plan.serving.request_default_max_tokens,
        tensor_parallel_size=manifest.tensor_parallel_size,
        weights_dtype=manifest.weights_dtype,
        kv_cache_dtype=manifest.kv_cache_dtype,
        tokenizer_hash=manifest.tokenizer_hash,
        lookahead=features.lookahead,
        max_draft_tokens=features.max_draft_len,
        lookahead_with_guides=features.lookahead is None,
        lora_adapters=tuple(adapter.name for adapter in plan.build.lora_adapters),
    )
    if info.lookahead is not None:  # such an engine decodes greedily: what a request does not say must not be refused
        info = replace(info, default_sampling=SamplingParams(temperature=0.0))
    try:
        check_sampling(info.default_sampling, info)
    except (InvalidRequest, TypeError) as error:
        raise BuildError(f"{directory / GENERATION_CONFIG}: {error}") from None
    return info
