"""Engine directories of target trtllm, and executors on the stand-in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from briton.engine_dir import EngineManifest, ModelConfig, TrtllmBuild
from briton.trtllm.executor import TrtllmExecutor
from briton.trtllm.library import SUPPORTED_VERSION, Library
from briton.trtllm.loader import start_executor
from briton.trtllm.settings import TrtllmSettings
from briton.types import LookaheadConfig
from tests.trtllm.stand_in.engine_config import EngineConfig
from tests.trtllm.stand_in.library import GPU, stand_in_library

STOP_IDS = (80, 81)
SETTINGS = TrtllmSettings(
    max_batch_size=8, max_num_tokens=4096, max_queue_size=64, kv_cache_tokens=2048, gather_generation_logits=True
)
BUILD = TrtllmBuild(
    library_version=SUPPORTED_VERSION,
    gpu_architecture=GPU,
    vocab_size_padded=92,
    max_seq_len=256,
    max_batch_size=64,
    max_num_tokens=4096,
)
MODEL = ModelConfig("llama", 90, 8, 16, 1, 2, 2, 4, 256, 1e-5, 10_000.0)
MANIFEST = EngineManifest(
    model_name="tiny",
    model=MODEL,
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


def write_engine(directory: Path, manifest: EngineManifest = MANIFEST, **build: Any) -> Path:
    """An engine directory; `build` replaces fields of what it was built for."""
    assert manifest.trtllm is not None
    manifest = replace(manifest, trtllm=replace(manifest.trtllm, **build))
    built = manifest.trtllm
    assert built is not None
    EngineConfig(
        vocab_size=manifest.model.vocab_size,
        vocab_size_padded=built.vocab_size_padded,
        world_size=manifest.tensor_parallel_size * built.pipeline_parallel_size,
        max_seq_len=built.max_seq_len + built.max_draft_len,
        max_batch_size=built.max_batch_size,
        max_num_tokens=built.max_num_tokens,
        max_draft_len=built.max_draft_len,
    ).save(directory)
    manifest.save(directory)
    return directory


def start(
    directory: Path,
    settings: TrtllmSettings = SETTINGS,
    library: Library | None = None,
    **build: Any,
) -> TrtllmExecutor:
    """An executor on an engine that was built for these settings."""
    sizes: LookaheadConfig | None = settings.lookahead
    lookahead = {} if sizes is None else {"lookahead": sizes, "max_draft_len": sizes.draft_tokens}
    write_engine(directory, **{**lookahead, **build})
    return start_executor(directory, settings, "tiny", library or stand_in_library())
