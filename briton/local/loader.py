"""From an engine directory to a running LocalExecutor."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from briton.engine_dir import load_manifest
from briton.errors import BuildError, ConfigError, InvalidRequest
from briton.local.executor import LocalExecutor
from briton.local.model_runner import ModelRunner
from briton.local.settings import BLOCK_SIZE, LocalSettings
from briton.types import ModelInfo, SamplingParams
from briton.validation import check_sampling

logger = logging.getLogger(__name__)

GENERATION_CONFIG = "generation_config.json"


def load_local_executor(directory: Path, settings: LocalSettings, model_name: str) -> LocalExecutor:
    """Compile the model, allocate the KV cache and start the loop. Raises BuildError or ConfigError, naming file or
    field."""
    manifest = load_manifest(directory)
    if manifest.tensor_parallel_size != 1:
        raise ConfigError(
            f"{directory} was built for {manifest.tensor_parallel_size} ranks; this executor runs 1",
            "trt_llm.build.tensor_parallel_count",
        )
    model = manifest.model
    if settings.max_seq_len is not None and settings.max_seq_len > model.max_position_embeddings:
        raise ConfigError(
            f"max_seq_len is {settings.max_seq_len}; the model has {model.max_position_embeddings} positions",
            "trt_llm.build.max_seq_len",
        )
    runner = ModelRunner(directory, manifest, settings, drafts=settings.lookahead is not None)
    runner.warm_up(settings.max_batch_size)
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
        costs = runner.measure_costs()
        logger.info("lookahead decoding, up to %d draft tokens a sequence; %s", info.max_draft_tokens, costs)
        if runner.kv_cache_dtype == "u8":
            logger.warning(
                "rejected drafts leave a trace in a u8 KV cache: with lookahead decoding output is only nearly the same"
            )
    return LocalExecutor(
        info,
        runner.forward,
        policy=settings.policy,
        enable_chunked_context=settings.enable_chunked_context,
        costs=costs,
    )


def default_sampling(directory: Path) -> SamplingParams:
    """What the checkpoint's generation_config.json recommends; absent fields and files mean plain sampling."""
    path = directory / GENERATION_CONFIG
    if not path.is_file():
        return SamplingParams()
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BuildError(f"{path} is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise BuildError(f"{path} is not a JSON object")
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    given = {name: raw[name] for name in names if raw.get(name) is not None}
    if given.get("top_k") == -1:  # some checkpoints say "off" so
        given["top_k"] = 0
    if raw.get("do_sample") is False:
        given["temperature"] = 0.0
    return replace(SamplingParams(), **given)
