"""The Llama family's weights as an engine directory lays them out: which tensors make which matrix, in which shape."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from briton.errors import BuildError
from briton.model.engine_dir import ModelConfig
from briton_engine_builder.checkpoint import Checkpoint
from briton_engine_builder.tensor import Tensor

Family = Literal["embedding", "attention", "mlp"]


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix [out, in] of the engine: the rows of its parts, one under the other."""

    name: str
    family: Family
    parts: tuple[Tensor, ...]
    biases: tuple[Tensor | None, ...]  # one for each part

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]


@dataclass(frozen=True, slots=True)
class Vector:
    """One F32 vector of the engine: a norm's weights."""

    name: str
    tensor: Tensor


def check_model(checkpoint: Checkpoint) -> None:
    """Raise BuildError for numbers that make no Llama, whatever tensors there are."""
    model = checkpoint.model
    heads, key_value_heads = model.num_attention_heads, model.num_key_value_heads
    if heads % key_value_heads:
        raise BuildError(
            f"{checkpoint.path}: {heads} attention heads cannot share {key_value_heads} key and value heads"
        )
    if model.head_dim % 2:
        raise BuildError(
            f"{checkpoint.path}: a head size of {model.head_dim} is odd, which rotary embedding does not allow"
        )
    outside = [token_id for token_id in checkpoint.stop_token_ids if not 0 <= token_id < model.vocab_size]
    if outside:
        raise BuildError(
            f"{checkpoint.path}: end-of-sequence token {outside[0]} is outside the vocabulary of {model.vocab_size}"
        )


def vectors(checkpoint: Checkpoint) -> Iterator[Vector]:
    """The norms. Raises BuildError for one that is missing or has another shape."""
    hidden = (checkpoint.model.hidden_size,)
    names = [
        f"layers.{i}.{norm}"
        for i in range(checkpoint.model.num_hidden_layers)
        for norm in ("input_norm", "post_attention_norm")
    ]
    for name in [*names, "norm"]:
        yield Vector(name, checkpoint.tensor(name).check_shape(hidden))


def matrices(checkpoint: Checkpoint) -> Iterator[Matrix]:
    """Everything else, fused. Raises BuildError for a tensor that is missing or has another shape."""
    model = checkpoint.model
    yield _matrix(checkpoint, "embed_tokens", "embedding", {"embed_tokens": (model.vocab_size, model.hidden_size)})
    for i in range(model.num_hidden_layers):
        for name, (family, parts) in _layer(model).items():
            named = {f"layers.{i}.{part}": shape for part, shape in parts.items()}
            yield _matrix(checkpoint, f"layers.{i}.{name}", family, named)
    if not model.tie_word_embeddings:
        yield _matrix(checkpoint, "lm_head", "embedding", {"lm_head": (model.vocab_size, model.hidden_size)})


def _layer(model: ModelConfig) -> dict[str, tuple[Family, dict[str, tuple[int, int]]]]:
    hidden, intermediate = model.hidden_size, model.intermediate_size
    query, key = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    return {
        "qkv": ("attention", {"q": (query, hidden), "k": (key, hidden), "v": (key, hidden)}),
        "o": ("attention", {"o": (hidden, query)}),
        "gate_up": ("mlp", {"gate": (intermediate, hidden), "up": (intermediate, hidden)}),
        "down": ("mlp", {"down": (hidden, intermediate)}),
    }


def _matrix(checkpoint: Checkpoint, name: str, family: Family, parts: dict[str, tuple[int, int]]) -> Matrix:
    return Matrix(
        name,
        family,
        tuple(checkpoint.tensor(role).check_shape(shape) for role, shape in parts.items()),
        tuple(
            checkpoint.tensor(f"{role}.bias").check_shape(shape[:1]) if checkpoint.has(f"{role}.bias") else None
            for role, shape in parts.items()
        ),
    )
