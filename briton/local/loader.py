"""From an engine directory to a running LocalExecutor."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from briton.engine.order import OrderRules
from briton.engine.step_cost import StepCost, StepShape
from briton.engine.types import ModelInfo, RankStats
from briton.engine.validation import check_sampling
from briton.errors import BuildError, ConfigError, InvalidRequest
from briton.local.executor import LocalExecutor
from briton.local.model_runner import ModelRunner
from briton.local.plan import Forward
from briton.local.probe import one_sequence
from briton.local.ranks.steps import LeadingForward, follow
from briton.local.scheduler import Policies
from briton.local.settings import BLOCK_SIZE, LocalSettings
from briton.model.engine_dir import EngineManifest, load_manifest
from briton.model.generation_config import GENERATION_CONFIG, default_sampling
from briton.ranks.communicator import Communicator

logger = logging.getLogger(__name__)


def load_local_executor(
    directory: Path,
    settings: LocalSettings,
    model_name: str,
    communicator: Communicator | None = None,
    rank_stats: Callable[[], tuple[RankStats, ...]] = tuple,
) -> LocalExecutor:
    """Compile the model, allocate the KV cache and start the loop. Raises BuildError or ConfigError, naming file or
    field.

    With a `communicator` this is rank 0 of several, and the others call `follow_local_executor` at the same time;
    `rank_stats` are then those of all of them.
    """
    manifest = _checked_manifest(directory, settings, communicator)
    model = manifest.local_model
    runner = _load(directory, manifest, settings, communicator)
    forward: Forward = runner.forward
    close: Callable[[], None] = runner.stop_compiling
    if communicator is not None:
        leading = LeadingForward(communicator, runner.forward, manifest.shards)
        forward, close = leading, leading.close
    runner.warm_up(settings.max_batch_size, forward)
    cost = learned_cost(forward, min(runner.max_seq_len, runner.num_blocks * BLOCK_SIZE, settings.max_num_tokens))
    kv_cache_tokens = runner.num_blocks * BLOCK_SIZE
    info = ModelInfo(
        model_name=model_name,
        executor="local",
        architecture=model.architecture,
        vocab_size=model.vocab_size,
        max_seq_len=min(runner.max_seq_len, kv_cache_tokens),
        max_batch_size=settings.max_batch_size,
        max_num_tokens=settings.max_num_tokens,
        max_queue_size=settings.max_queue_size,
        kv_cache_tokens=kv_cache_tokens,
        kv_block_size=BLOCK_SIZE,
        stop_token_ids=manifest.stop_token_ids,
        default_sampling=default_sampling(directory),
        default_max_tokens=settings.default_max_tokens,
        tensor_parallel_size=manifest.tensor_parallel_size,
        weights_dtype=manifest.weights_dtype,
        kv_cache_dtype=runner.kv_cache_dtype,
        tokenizer_hash=manifest.tokenizer_hash,
        lookahead=settings.lookahead,
        enable_b10_lookahead=settings.enable_b10_lookahead,
        max_draft_tokens=settings.max_draft_tokens,
    )
    try:
        check_sampling(info.default_sampling, info)  # else every request would be refused for what it never said
    except (InvalidRequest, TypeError) as error:
        raise BuildError(f"{directory / GENERATION_CONFIG}: {error}") from None
    logger.info(
        "KV cache holds %d tokens (%s, at most %.2f GiB, taken as it fills); longest sequence %d",
        kv_cache_tokens,
        runner.kv_cache_dtype,
        runner.num_blocks * runner.block_bytes / 2**30,
        info.max_seq_len,
    )
    costs = None
    if info.lookahead is not None:
        costs = runner.measure_costs(forward)
        logger.info("lookahead decoding, up to %d draft tokens a sequence; %s", info.max_draft_tokens, costs)
        if runner.kv_cache_dtype == "u8":
            logger.warning(
                "rejected drafts leave a trace in a u8 KV cache: with lookahead decoding output is only nearly the same"
            )
    runner.compile_later()
    return LocalExecutor(
        info,
        forward,
        policy=settings.policy,
        enable_chunked_context=settings.enable_chunked_context,
        costs=costs,
        policies=Policies(
            cost,
            rules=OrderRules(settings.max_priority, settings.priority_aging_s),
            target_inter_token_s=settings.target_inter_token_s,
        ),
        close=close,
        rank_stats=rank_stats,
    )


def learned_cost(forward: Forward, most: int) -> StepCost:
    """What steps cost, as far as three of them tell, of at most `most` tokens, in blocks that nobody has yet: enough
    for the first requests' deadlines and for the watchdog."""
    cost = StepCost()
    for num_tokens in (1, 32, 128):
        size = min(num_tokens, most)
        forward(one_sequence(size))  # what is prepared at a first step of a size is no part of its cost
        started = time.perf_counter()
        forward(one_sequence(size))
        cost.observe(StepShape(size, 1, size * (size + 1) // 2), time.perf_counter() - started)
    return cost


def follow_local_executor(
    directory: Path, settings: LocalSettings, communicator: Communicator, on_loaded: Callable[[], None]
) -> None:
    """On ranks other than 0: load this rank's part, and compute what rank 0 decides until it shuts down.

    Raises as `load_local_executor` does, and whatever breaks in a step.
    """
    manifest = _checked_manifest(directory, settings, communicator)
    runner = _load(directory, manifest, settings, communicator)
    on_loaded()
    follow(communicator, runner.forward)


def _load(
    directory: Path, manifest: EngineManifest, settings: LocalSettings, communicator: Communicator | None
) -> ModelRunner:
    """Alone, a rank serves with the graph of any size first. Several have all graphs before they serve: they must use
    the same one in a step."""
    drafts, is_alone = settings.lookahead is not None, communicator is None
    runner = ModelRunner(directory, manifest, settings, drafts=drafts, fixed_later=is_alone, collectives=communicator)
    if drafts:
        runner.write_first_blocks()
    if communicator is not None:
        communicator.counters.weights_bytes = runner.weights_bytes
        communicator.counters.kv_cache_bytes = runner.num_blocks * runner.block_bytes
    return runner


def _checked_manifest(directory: Path, settings: LocalSettings, communicator: Communicator | None) -> EngineManifest:
    rank, size = (0, 1) if communicator is None else (communicator.rank, communicator.size)
    manifest = load_manifest(directory, rank)
    if manifest.tensor_parallel_size != size:
        raise ConfigError(
            f"{directory} was built for {manifest.tensor_parallel_size} ranks; it is started with {size}",
            "trt_llm.build.tensor_parallel_count",
        )
    positions = manifest.local_model.max_position_embeddings
    if settings.max_seq_len is not None and settings.max_seq_len > positions:
        raise ConfigError(
            f"max_seq_len is {settings.max_seq_len}; the model has {positions} positions",
            "trt_llm.build.max_seq_len",
        )
    return manifest
