"""Engine directories of target trtllm, and executors on the stand-in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from briton.config.config import Config
from briton.config.loader import load_config
from briton.config.lookahead import LookaheadConfig
from briton.model.engine_dir import EngineManifest, TrtllmBuild
from briton.model.shapes import ModelShapes
from briton.trtllm.engine_check import BuiltEngine, open_engine
from briton.trtllm.executor import TrtllmExecutor
from briton.trtllm.library import Library
from briton.trtllm.loader import start_executor
from briton.trtllm.lora import LORA_MODULE_IDS
from briton.trtllm.machine import LIBRARY_VERSION
from tests.config.conftest import changed
from tests.trtllm.stand_in.engine_config import EngineConfig
from tests.trtllm.stand_in.library import GPU, stand_in_library

STOP_IDS = (80, 81)
CONFIG: dict[str, Any] = {
    "model_name": "tiny",
    "trt_llm": {
        "build": {
            "checkpoint_repository": {"source": "LOCAL", "repo": "."},
            "max_batch_size": 8,
            "max_num_tokens": 4096,
            "max_seq_len": 256,
            "gather_all_token_logits": True,
        },
        "runtime": {"enable_chunked_context": True},
    },
    "briton": {"max_queue_size": 64},
}
BUILD = TrtllmBuild(
    library_version=LIBRARY_VERSION,
    gpu_architecture=GPU,
    vocab_size_padded=92,
    max_seq_len=256,
    max_batch_size=64,
    max_num_tokens=4096,
)
SHAPES = ModelShapes("LlamaForCausalLM", 8, 2, 4, 4, 2, 16, 90, 256)
MANIFEST = EngineManifest(
    model_name="tiny",
    model=SHAPES,
    quantization_type="no_quant",
    weights_dtype="bf16",
    kv_cache_dtype="bf16",
    tokenizer_hash="",
    stop_token_ids=STOP_IDS,
    builder_version="1",
    source={},
    target="trtllm",
    trtllm=BUILD,
)
_PATHS = {
    "max_queue_size": "briton.max_queue_size",
    "request_default_max_tokens": "trt_llm.runtime.request_default_max_tokens",
    "batch_scheduler_policy": "trt_llm.runtime.batch_scheduler_policy",
    "kv_cache_host_memory_bytes": "trt_llm.runtime.kv_cache_host_memory_bytes",
    "enable_chunked_context": "trt_llm.runtime.enable_chunked_context",
}


def speculator(sizes: LookaheadConfig, **options: Any) -> dict[str, Any]:
    """A config's section for lookahead decoding."""
    return {
        "speculative_decoding_mode": "LOOKAHEAD_DECODING",
        "lookahead_windows_size": sizes.window_size,
        "lookahead_ngram_size": sizes.ngram_size,
        "lookahead_verification_set_size": sizes.verification_set_size,
        **options,
    }


def config_of(directory: Path, lookahead: LookaheadConfig | None = None, **options: Any) -> Config:
    """CONFIG with other values for some of its fields, those of trt_llm.build unless `_PATHS` says otherwise."""
    changes = {_PATHS.get(name, f"trt_llm.build.{name}"): value for name, value in options.items()}
    if lookahead is not None:
        changes["trt_llm.build.speculator"] = speculator(lookahead)
    file = directory / "config.yaml"
    file.write_text(yaml.safe_dump(changed(CONFIG, changes)), encoding="utf-8")
    return load_config(file)


def write_engine(directory: Path, manifest: EngineManifest = MANIFEST, **build: Any) -> Path:
    """An engine directory; `build` replaces fields of what it was built for."""
    assert manifest.trtllm is not None
    built = replace(manifest.trtllm, **build)
    manifest = replace(manifest, trtllm=built)
    EngineConfig(
        vocab_size=SHAPES.vocab_size,
        vocab_size_padded=built.vocab_size_padded,
        world_size=manifest.world_size,
        max_seq_len=built.max_seq_len + built.max_draft_len,
        max_batch_size=built.max_batch_size,
        max_num_tokens=built.max_num_tokens,
        max_draft_len=built.max_draft_len,
        lora_modules=tuple(LORA_MODULE_IDS.values()) if built.lora_adapters else (),
        max_lora_rank=64,
        num_layers=SHAPES.num_hidden_layers,
    ).save(directory)
    manifest.save(directory)
    return directory


def with_kv_cache(engine: BuiltEngine, num_tokens: int) -> BuiltEngine:
    """The same with a KV cache of so many tokens: no GPU has so little memory."""
    config = engine.plan.executor_config
    cache: Mapping[str, Any] = {**config["kv_cache_config"].arguments, "max_tokens": num_tokens}
    arguments = {**config.arguments, "kv_cache_config": replace(config["kv_cache_config"], arguments=cache)}
    return replace(engine, plan=replace(engine.plan, executor_config=replace(config, arguments=arguments)))


def start(
    directory: Path,
    library: Library | None = None,
    *,
    kv_cache_tokens: int = 2048,
    lookahead: LookaheadConfig | None = None,
    build: Mapping[str, Any] | None = None,
    **options: Any,
) -> TrtllmExecutor:
    """An executor on an engine that was built for this config, but for the fields of `build`."""
    built = {} if lookahead is None else {"lookahead": lookahead, "max_draft_len": lookahead.draft_tokens}
    write_engine(directory, **{**built, **(build or {})})
    engine = open_engine(config_of(directory, lookahead, **options), directory, 0)
    return start_executor(with_kv_cache(engine, kv_cache_tokens), library or stand_in_library())
