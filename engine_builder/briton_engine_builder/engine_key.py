"""What an engine of the local executor is called in the cache, and whether a config's limits suit it."""

from __future__ import annotations

import hashlib
import json

from briton import __version__
from briton.config.config import Config
from briton.config.local_target import LocalTarget
from briton.errors import ConfigError
from briton.model.engine_dir import FORMAT_VERSION, ModelConfig
from briton_engine_builder.cache_files import readable_name
from briton_engine_builder.sources.fetched import FetchedCheckpoint

BUILDER_VERSION = f"{__version__}+2"  # the number after + changes when the same input gives another engine


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


def check_limits(config: Config, model: ModelConfig) -> None:
    """Raise ConfigError for a limit that the model cannot meet."""
    if config.max_seq_len is not None and config.max_seq_len > model.max_position_embeddings:
        raise ConfigError(
            f"max_seq_len is {config.max_seq_len}; the model's limit (max_position_embeddings, or its sliding_window) "
            f"is {model.max_position_embeddings}",
            "max_seq_len",
        )
