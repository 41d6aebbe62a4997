"""What the matrices of an engine must be, worked out from a checkpoint in the plainest way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Matrices = dict[str, NDArray[np.float32]]


def fused(weights: Mapping[str, NDArray[np.float32]], layers: Sequence[int]) -> Matrices:
    """Hugging Face tensors, in float32 -> the engine's matrices of some layers, and the embeddings."""

    def rows(i: int, *names: str) -> NDArray[np.float32]:
        return np.concatenate([weights[f"model.layers.{i}.{name}_proj.weight"] for name in names])

    matrices = {"embed_tokens": weights["model.embed_tokens.weight"]}
    if "lm_head.weight" in weights:
        matrices["lm_head"] = weights["lm_head.weight"]
    for i in layers:
        matrices[f"layers.{i}.qkv"] = rows(i, "self_attn.q", "self_attn.k", "self_attn.v")
        matrices[f"layers.{i}.o"] = rows(i, "self_attn.o")
        matrices[f"layers.{i}.gate_up"] = rows(i, "mlp.gate", "mlp.up")
        matrices[f"layers.{i}.down"] = rows(i, "mlp.down")
    return matrices


def gguf_weights(path: Path, layers: Sequence[int]) -> Matrices:
    """The matrices of a .gguf file, dequantized by the gguf package."""
    reader = gguf.GGUFReader(path)
    dim = int(reader.fields["llama.rope.dimension_count"].contents())
    names = {"attn_q": "self_attn.q", "attn_k": "self_attn.k", "attn_v": "self_attn.v", "attn_output": "self_attn.o"}
    names |= {"ffn_gate": "mlp.gate", "ffn_up": "mlp.up", "ffn_down": "mlp.down"}
    weights: dict[str, Any] = {}
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        if tensor.name == "token_embd.weight":
            weights["model.embed_tokens.weight"] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        elif tensor.name == "output.weight":
            weights["lm_head.weight"] = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        elif parts[0] == "blk" and int(parts[1]) in layers and parts[2] in names:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            if parts[2] in ("attn_q", "attn_k"):  # from pairs (j, j + 1) to pairs (j, j + dim / 2)
                values = values.reshape(-1, dim // 2, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
            weights[f"model.layers.{parts[1]}.{names[parts[2]]}_proj.weight"] = values
    return fused(weights, layers)
