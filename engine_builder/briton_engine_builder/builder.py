"""Config in, engine directory out: fetch the checkpoint, convert it, and keep the result in the cache."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from briton import __version__
from briton.config.config import Config
from briton.config.environment import Environment
from briton.config.local_target import LocalTarget
from briton.errors import BuildError, ConfigError
from briton.model.engine_dir import FORMAT_VERSION, EngineManifest, ModelConfig, load_manifest
from briton.model.generation_config import GENERATION_CONFIG
from briton.model.sharding import shard_model
from briton.process.executor_choice import check_servable, choose_executor, local_target
from briton_engine_builder.cache import EngineCache
from briton_engine_builder.cache_files import readable_name
from briton_engine_builder.checkpoint import Checkpoint
from briton_engine_builder.convert import num_weights, write_weights
from briton_engine_builder.gguf_checkpoint import GGUFCheckpoint
from briton_engine_builder.hashing import sha256_of
from briton_engine_builder.hf_checkpoint import TOKENIZER, HFCheckpoint
from briton_engine_builder.llama import check_model
from briton_engine_builder.progress import ProgressBar
from briton_engine_builder.sources import FetchedCheckpoint, Fetcher
from briton_engine_builder.trtllm import build_trtllm_engine, find_trtllm_engine

logger = logging.getLogger(__name__)

BUILDER_VERSION = f"{__version__}+2"  # the number after + changes when the same input gives another engine


def build_engine(config: Config, environment: Environment, *, progress: bool = True) -> Path:
    """The engine directory of a config, for the executor that is chosen: the cached one, or one built now.

    Raises ConfigError for a limit that the model cannot meet, Unsupported for a model or source that the local executor
    has not got, BuildError for a checkpoint that cannot be fetched, read or converted, and for a disk that is full.
    """
    check_servable(config)
    with _file_errors(config):
        if choose_executor(config).name == "trtllm":
            return build_trtllm_engine(config, environment, progress=progress)
        return find_cached_engine(config, environment) or _fetch_and_build(config, environment, progress)


def find_cached_engine(config: Config, environment: Environment) -> Path | None:
    """The engine directory that `build_engine` would return at once, without network; None when it would have to build.

    Raises as `build_engine` does.
    """
    check_servable(config)
    cache_dir = config.cache_dir(environment)
    with _file_errors(config):
        if choose_executor(config).name == "trtllm":
            return find_trtllm_engine(config, environment)
        fetched = Fetcher(config, environment, cache_dir).remembered()
        if fetched is None:
            return None
        found = EngineCache(cache_dir).find(engine_key(config, local_target(config), fetched))
    if found is not None:
        _check_limits(config, load_manifest(found).local_model)
    return found


def _fetch_and_build(config: Config, environment: Environment, progress: bool) -> Path:
    cache_dir, target = config.cache_dir(environment), local_target(config)
    fetched, cache = Fetcher(config, environment, cache_dir).fetch(progress=progress), EngineCache(cache_dir)
    key = engine_key(config, target, fetched)
    with cache.lock(key):
        found = cache.find(key)  # somebody else may have built it meanwhile
        if found is not None:
            _check_limits(config, load_manifest(found).local_model)
            return found
        started = time.monotonic()
        checkpoint = open_checkpoint(fetched.path)
        _check_limits(config, checkpoint.model)
        with cache.new_directory(key) as directory:
            _write_engine(config, target, fetched, checkpoint, directory, progress)
    built = cache.directory / key
    logger.info("built the engine in %.1f s: %s", time.monotonic() - started, built)
    return built


def engine_key(config: Config, target: LocalTarget, fetched: FetchedCheckpoint) -> str:
    """The name of an engine's directory: the checkpoint's, to be read by people, and a hash of all it depends on."""
    content = {
        "identity": fetched.identity,
        "quantization_type": str(config.quantization_type),
        "target": [target.attention, target.mlp, target.kv_cache, target.carry_over],
        "tensor_parallel_size": config.tensor_parallel_size,
        "builder_version": BUILDER_VERSION,
        "format_version": FORMAT_VERSION,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]
    return f"{readable_name(config.checkpoint.name)}-{digest}"


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


def _check_limits(config: Config, model: ModelConfig) -> None:
    if config.max_seq_len is not None and config.max_seq_len > model.max_position_embeddings:
        raise ConfigError(
            f"max_seq_len is {config.max_seq_len}; the model's limit (max_position_embeddings, or its sliding_window) "
            f"is {model.max_position_embeddings}",
            "max_seq_len",
        )


@contextmanager
def _file_errors(config: Config) -> Iterator[None]:
    """A file or directory that cannot be read or made, in one line with its name."""
    try:
        yield
    except OSError as error:
        raise BuildError(f"cannot build an engine from {config.checkpoint}: {error}") from error
