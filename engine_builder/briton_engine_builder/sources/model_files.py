"""Which of a repository's files an engine is built from."""

from __future__ import annotations

from briton.errors import BuildError
from briton.model.generation_config import GENERATION_CONFIG
from briton_engine_builder.hf_checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_MODEL,
    CONFIG,
    QUANT_CONFIG,
    TOKENIZER_FILES,
)
from briton_engine_builder.safetensors_reader import INDEX, SINGLE


def needed_files(repo: str, files: list[str]) -> list[str]:
    """Of a repository's files those that are read: no duplicates in other formats; of a LoRA adapter, the adapter.
    BuildError without either.

    `repo` is what an error calls the repository.
    """
    weights = [name for name in files if "/" not in name and name.endswith(".safetensors")]
    if ADAPTER_MODEL in files and ADAPTER_CONFIG in files and not {INDEX, SINGLE} & set(files):
        return [ADAPTER_CONFIG, ADAPTER_MODEL]
    if INDEX in files:
        weights = [INDEX, *(name for name in weights if name.startswith("model-"))]
    elif SINGLE in files:
        weights = [SINGLE]
    if weights:
        if CONFIG not in files:
            raise BuildError(f"{repo} has .safetensors weights and no {CONFIG}")
        return [
            *weights,
            *(name for name in (CONFIG, QUANT_CONFIG, GENERATION_CONFIG, *TOKENIZER_FILES) if name in files),
        ]
    ggufs = [name for name in files if "/" not in name and name.endswith(".gguf")]
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        raise BuildError(
            f"{repo} has {len(ggufs)} .gguf files and no safetensors: download one of them and use source LOCAL"
        )
    raise BuildError(f"{repo} has neither .safetensors nor .gguf weights")
