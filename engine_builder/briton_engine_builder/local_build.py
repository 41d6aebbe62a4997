"""A checkpoint becomes an engine directory of the local executor: fetch, convert, write, keep in the cache."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from briton.config.config import Config
from briton.config.environment import Environment
from briton.config.local_target import LocalTarget
from briton.model.engine_dir import EngineManifest, load_manifest
from briton.model.generation_config import GENERATION_CONFIG
from briton.model.sharding import shard_model
from briton.process.executor_choice import local_target
from briton_engine_builder.cache import EngineCache
from briton_engine_builder.checkpoint import Checkpoint
from briton_engine_builder.convert import num_weights, write_weights
from briton_engine_builder.engine_key import BUILDER_VERSION, check_limits, engine_key
from briton_engine_builder.gguf_checkpoint import GGUFCheckpoint
from briton_engine_builder.hashing import sha256_of
from briton_engine_builder.hf_checkpoint import TOKENIZER, HFCheckpoint
from briton_engine_builder.llama import check_model
from briton_engine_builder.progress import ProgressBar
from briton_engine_builder.sources.fetch import Fetcher
from briton_engine_builder.sources.fetched import FetchedCheckpoint

logger = logging.getLogger(__name__)


def fetch_and_build(config: Config, environment: Environment, progress: bool) -> Path:
    """Fetch the checkpoint, and make the engine directory unless it is there. Raises as `build_engine` does."""
    cache_dir, target = config.cache_dir(environment), local_target(config)
    fetched, cache = Fetcher(config, environment, cache_dir).fetch(progress=progress), EngineCache(cache_dir)
    key = engine_key(config, target, fetched)
    with cache.lock(key):
        found = cache.find(key)  # somebody else may have built it meanwhile
        if found is not None:
            check_limits(config, load_manifest(found).local_model)
            return found
        started = time.monotonic()
        checkpoint = open_checkpoint(fetched.path)
        check_limits(config, checkpoint.model)
        with cache.new_directory(key) as directory:
            _write_engine(config, target, fetched, checkpoint, directory, progress)
    built = cache.directory / key
    logger.info("built the engine in %.1f s: %s", time.monotonic() - started, built)
    return built


def open_checkpoint(path: Path) -> Checkpoint:
    """A .gguf file, or a directory with config.json and safetensors. Raises BuildError, Unsupported."""
    checkpoint = GGUFCheckpoint(path) if path.suffix == ".gguf" else HFCheckpoint(path)
    check_model(checkpoint)
    return checkpoint


def _write_engine(
    config: Config,
    target: LocalTarget,
    fetched: FetchedCheckpoint,
    checkpoint: Checkpoint,
    directory: Path,
    progress: bool,
) -> None:
    shards = shard_model(checkpoint.model, config.tensor_parallel_size)
    checkpoint.write_tokenizer(directory)  # first, since it may fail, and quickly
    with ProgressBar("Building the engine", num_weights(checkpoint), shown=progress) as bar:
        weights_dtype = write_weights(checkpoint, target, shards, directory, bar.advance)
    if checkpoint.generation_config:
        text = json.dumps(checkpoint.generation_config, indent=2) + "\n"
        (directory / GENERATION_CONFIG).write_text(text, encoding="utf-8")
    if not checkpoint.stop_token_ids:
        logger.warning(
            "%s names no end-of-sequence token: only max_tokens and stop strings end a request", fetched.path
        )
    files: dict[str, dict[str, Any]] = {
        file.name: {"size": file.stat().st_size, "sha256": sha256_of(file)} for file in sorted(directory.iterdir())
    }
    EngineManifest(
        model_name=config.checkpoint.name.removesuffix(".gguf"),
        model=checkpoint.model,
        quantization_type=str(config.quantization_type),
        weights_dtype=weights_dtype,
        kv_cache_dtype=target.kv_cache,
        tokenizer_hash=files[TOKENIZER]["sha256"],
        stop_token_ids=checkpoint.stop_token_ids,
        builder_version=BUILDER_VERSION,
        source=fetched.source,
        tensor_parallel_size=len(shards),
        shards=shards,
        files=files,
    ).save(directory)
