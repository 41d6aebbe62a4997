"""A tiny .gguf file of the llama architecture, written as llama.cpp's converter writes one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from tests.tiny_llama import tiny_config, tiny_tokenizer, tiny_weights

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    """Hugging Face tensor name -> GGUF tensor name."""
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, suffix = name.rpartition(".")
    if stem in top:
        return f"{top[stem]}.{suffix}"
    _, _, layer, kind = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[kind]}.{suffix}"


def permuted(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """llama.cpp's order of query and key rows (LlamaModel.permute of convert_hf_to_gguf.py)."""
    shape = weights.shape
    return np.asarray(weights.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape))


def write_tiny_gguf(
    path: Path,
    types: Mapping[str, GGMLQuantizationType] | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
    extra: Mapping[str, NDArray[np.float32]] | None = None,
    leave_out: tuple[str, ...] = (),
    seed: int = 0,
    constant_blocks: bool = False,
    **config: Any,
) -> dict[str, NDArray[np.float32]]:
    """Write a file and return its float32 weights by Hugging Face name, before any block type rounded them.

    `types`: part of a GGUF tensor name -> block type; the last that fits holds. `metadata`: more keys.
    `extra`: more tensors. `constant_blocks`: some blocks have equal weights, which leaves Q4_1 a scale of 0.
    """
    full = tiny_config(**config)
    weights = tiny_weights(full, seed)
    if constant_blocks:
        for matrix in (matrix for matrix in weights.values() if matrix.ndim == 2):
            matrix[1::7, :32] = 0
            matrix[2::7, 32:64] = 0.05
    heads = {"q_proj": full["num_attention_heads"], "k_proj": full["num_key_value_heads"]}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(full["num_hidden_layers"])
    writer.add_context_length(full["max_position_embeddings"])
    writer.add_embedding_length(full["hidden_size"])
    writer.add_feed_forward_length(full["intermediate_size"])
    writer.add_head_count(full["num_attention_heads"])
    writer.add_head_count_kv(full["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(full["rms_norm_eps"])
    writer.add_rope_freq_base(full["rope_theta"])
    writer.add_rope_dimension_count(full["head_dim"])
    if full["head_dim"] * full["num_attention_heads"] != full["hidden_size"]:
        writer.add_key_length(full["head_dim"])
        writer.add_value_length(full["head_dim"])
    _add_tokenizer(writer, full["vocab_size"])
    for key, value in (metadata or {}).items():
        _add(writer, key, value)
    for name, values in weights.items():
        theirs = gguf_name(name)
        if theirs in leave_out:
            continue
        kind = next((count for part, count in heads.items() if part in name), None)
        stored = values if kind is None else permuted(values, kind)
        fitting = [dtype for part, dtype in (types or {}).items() if part in theirs and values.ndim == 2]
        if fitting:
            writer.add_tensor(theirs, _quantized(stored, fitting[-1]), raw_dtype=fitting[-1])
        else:
            writer.add_tensor(theirs, np.ascontiguousarray(stored))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _quantized(values: NDArray[np.float32], dtype: GGMLQuantizationType) -> NDArray[np.uint8]:
    if dtype != GGMLQuantizationType.Q6_K:
        return np.asarray(gguf.quants.quantize(values, dtype))
    # the gguf package can only read this type: any bytes are weights, if the scale at the block's end is a number
    blocks = np.random.default_rng(len(values)).integers(0, 256, (*values.shape[:-1], values.shape[-1] // 256, 210))
    blocks[..., -2:] = (0x00, 0x14)  # 2^-10 in float16
    return blocks.astype(np.uint8).reshape(*values.shape[:-1], -1)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    add = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32, list: writer.add_array}
    add[type(value)](key, value)


def _add_tokenizer(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    tokenizer = tiny_tokenizer(vocab_size)
    size = tokenizer.get_vocab_size()
    tokens = [tokenizer.id_to_token(i) for i in range(size)] + [f"[PAD{i}]" for i in range(size, vocab_size)]
    control, normal, unused = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL, gguf.TokenType.UNUSED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if i < 3 else normal if i < size else unused for i in range(vocab_size)])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(1)
