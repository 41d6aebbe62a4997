"""Rotary position embedding: the tables of cosines and sines, with the scalings that Llama-family checkpoints use."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briton.errors import Unsupported
from briton.model.engine_dir import ModelConfig


def rope_tables(model: ModelConfig, num_positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines, each [positions, 1, 1, head_dim], the half-dimension angles repeated (Hugging Face's
    rotate_half layout).

    Computed here in float64 rather than in the graph: in bf16 an angle beyond position 256 would be wrong by whole
    radians.
    """
    angles = np.outer(np.arange(num_positions, dtype=np.float64), inverse_frequencies(model))
    table = np.concatenate([angles, angles], axis=1).reshape(num_positions, 1, 1, model.head_dim)
    return np.cos(table).astype(np.float32), np.sin(table).astype(np.float32)


def inverse_frequencies(model: ModelConfig) -> NDArray[np.float64]:
    """Radians per position, [head_dim / 2]. Raises Unsupported for an unknown rope_type."""
    dim = model.head_dim
    plain = 1.0 / model.rope_theta ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    scaling = model.rope_scaling or {}
    rope_type = scaling.get("rope_type", "default")
    if rope_type == "default":
        return plain
    if rope_type == "linear":
        return plain / float(scaling["factor"])
    if rope_type == "factors":  # one divisor a frequency, as GGUF stores them
        return plain / np.asarray(scaling["factors"], np.float64)
    if rope_type == "llama3":
        return _llama3(plain, scaling)
    raise Unsupported(
        f"rope_scaling type {rope_type!r} is not supported; known: default, linear, llama3", "rope_scaling"
    )


def _llama3(plain: NDArray[np.float64], scaling: dict[str, Any]) -> NDArray[np.float64]:
    """Long wavelengths divided by `factor`, short ones kept, a smooth passage between (Llama 3.1's reference code)."""
    factor, low, high = (float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(scaling["original_max_position_embeddings"]) * plain / (2 * math.pi)  # within the original context
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return plain * (smooth + (1 - smooth) / factor)
