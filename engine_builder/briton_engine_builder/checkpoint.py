"""What a checkpoint is to the conversion, whatever its files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from briton.model.engine_dir import ModelConfig
from briton_engine_builder.tensor import Tensor


class Checkpoint(Protocol):
    """An open checkpoint. Tensors are named by role: the engine directory's names, before fusing.

    Roles: `embed_tokens`, `norm`, `lm_head`, and `layers.{i}.` followed by `input_norm`, `q`, `k`, `v`, `o`,
    `post_attention_norm`, `gate`, `up`, `down`. A bias has the role of its matrix followed by `.bias`. Query and key
    rows are in the order of the rotate-half form of rotary embedding, as in Hugging Face checkpoints.
    """

    path: Path
    model: ModelConfig
    stop_token_ids: tuple[int, ...]
    generation_config: dict[str, Any] | None  # as in generation_config.json

    def tensor(self, role: str) -> Tensor:
        """The tensor of a role. Raises BuildError, with the checkpoint's own name for it, when it is missing."""
        ...

    def has(self, role: str) -> bool:
        """Whether there is a tensor of that role."""
        ...

    def write_tokenizer(self, directory: Path) -> None:
        """Put tokenizer.json and what belongs to it into the directory. Raises BuildError."""
        ...
