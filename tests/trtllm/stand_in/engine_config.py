"""The config.json of a TensorRT engine, as far as the stand-in reads it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class EngineConfig:
    """What an engine was built for."""

    vocab_size: int = 90
    vocab_size_padded: int = 92
    world_size: int = 1
    max_seq_len: int = 256
    max_batch_size: int = 64
    max_num_tokens: int = 4096
    max_draft_len: int = 0
    lora_modules: tuple[int, ...] = ()  # ids; empty: built without the LoRA plugin
    max_lora_rank: int = 0
    num_layers: int = 2

    def save(self, directory: Path) -> None:
        """Write config.json."""
        (directory / "config.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> EngineConfig:
        """Read it. RuntimeError where it is not there, as the library raises."""
        try:
            return cls(**json.loads((directory / "config.json").read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise RuntimeError(f"[TensorRT-LLM][ERROR] cannot open {error.filename}") from None
