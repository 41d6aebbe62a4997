"""The shapes of a config's model without its weights: from a file, a built-in table, or the Hugging Face hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub

from briton.config.config import Config
from briton.config.enums import CheckpointSource
from briton.config.environment import Environment
from briton.errors import BuildError, ConfigError
from briton.model.shapes import ModelShapes, known_shapes, read_shapes, shapes_of, with_model_optimizer
from briton_engine_builder.gguf_checkpoint import GGUFCheckpoint
from briton_engine_builder.hf_checkpoint import CONFIG
from briton_engine_builder.sources.fetch import Fetcher
from briton_engine_builder.sources.hub import one_line_errors

_MODEL_OPTIMIZER_CONFIG = "hf_quant_config.json"


def find_shapes(config: Config, environment: Environment, *, offline: bool, model_config: Path | None) -> ModelShapes:
    """The shapes of the model that a config names; `model_config` is a config.json that holds instead.

    With `offline` no hub is asked: a local checkpoint, the table of the public examples' models, or what was fetched
    before has to do. For sources other than the hub that is always so. Raises ConfigError where the shapes cannot be
    known that way, BuildError where the hub does not give them.
    """
    if model_config is not None:
        return read_shapes_at(model_config)
    if not config.has_checkpoint:
        raise ConfigError(
            f"{config.path}: there is no checkpoint_repository to take the model's shapes from: give --model-config",
            "trt_llm.build.checkpoint_repository",
        )
    checkpoint = config.checkpoint
    if checkpoint.source is CheckpointSource.LOCAL:
        return read_shapes_at(Path(checkpoint.repo))
    if checkpoint.source is CheckpointSource.HF and not offline:
        token = environment.hf_token_for(checkpoint.runtime_secret_name)
        return fetch_shapes(checkpoint.repo, checkpoint.revision, token=token)
    shapes = known_shapes(checkpoint.repo)
    fetched = Fetcher(config, environment, config.cache_dir(environment)).remembered()
    if shapes is None and fetched is not None and fetched.path.exists():
        return read_shapes_at(fetched.path)
    if shapes is None:
        why = "and --offline asks no hub" if offline else f"and nothing of it can be read at {checkpoint.source} yet"
        raise ConfigError(
            f"the shapes of {checkpoint.repo} are not known, {why}: give its config.json with --model-config",
            "trt_llm.build.checkpoint_repository.repo",
        )
    return shapes


def fetch_shapes(repo: str, revision: str | None, *, token: str | None) -> ModelShapes:
    """The shapes of a repository of the Hugging Face hub: its config.json is downloaded. Raises BuildError."""
    with one_line_errors(repo, revision):
        info = huggingface_hub.HfApi(token=token).model_info(repo, revision=revision)
        files = {sibling.rfilename for sibling in info.siblings or []}
        if CONFIG not in files:
            raise BuildError(f"{repo} has no {CONFIG}: give one with --model-config")
        config = _download(repo, CONFIG, revision, token)
        if _MODEL_OPTIMIZER_CONFIG in files and not config.get("quantization_config"):
            config = with_model_optimizer(config, _download(repo, _MODEL_OPTIMIZER_CONFIG, revision, token))
    return shapes_of(config, f"{repo}/{CONFIG}")


def _download(repo: str, name: str, revision: str | None, token: str | None) -> dict[str, Any]:
    file = huggingface_hub.hf_hub_download(repo, name, revision=revision, token=token)
    config = json.loads(Path(file).read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise BuildError(f"{repo}/{name} holds no JSON object")
    return config


def read_shapes_at(path: Path) -> ModelShapes:
    """Of a config.json, a directory with one, or a .gguf file. Raises ConfigError, BuildError, Unsupported."""
    if path.suffix == ".gguf":
        model = GGUFCheckpoint(path).model
        return ModelShapes(
            architecture="LlamaForCausalLM",
            hidden_size=model.hidden_size,
            num_hidden_layers=model.num_hidden_layers,
            num_attention_heads=model.num_attention_heads,
            num_key_value_heads=model.num_key_value_heads,
            head_dim=model.head_dim,
            intermediate_size=model.intermediate_size,
            vocab_size=model.vocab_size,
            max_position_embeddings=model.max_position_embeddings,
            tie_word_embeddings=model.tie_word_embeddings,
        )
    return read_shapes(path / CONFIG if path.is_dir() else path)
