"""A tiny Llama checkpoint directory with random weights and a real byte-level BPE tokenizer, made in a moment.

For tests that need a model but not its words: the fixture `tiny_llama` of tests/conftest.py.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"  # ids 0, 1, 2
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.uint16): "BF16"}
_CORPUS = (
    "The capital of France is Paris. ",
    '{"name": "value", "count": 12, "list": [true, false, null]}',
    "über 世界 🎉 ",
)


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A config.json; any of its keys can be changed, and None takes one out."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **changes,
    }
    return {key: value for key, value in config.items() if value is not None}


def tiny_weights(config: Mapping[str, Any], seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Random float32 tensors by Hugging Face name, of such a size that logits differ from token to token."""
    generator = np.random.default_rng(seed)
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    attention = {"q": (query, hidden), "k": (key, hidden), "v": (key, hidden), "o": (hidden, query)}
    mlp = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}

    def draw(*shape: int) -> NDArray[np.float32]:
        return np.asarray(generator.standard_normal(shape) * 1.4 / shape[-1] ** 0.5, np.float32)

    tensors = {"model.embed_tokens.weight": draw(config["vocab_size"], hidden), "model.norm.weight": 1 + draw(hidden)}
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = draw(config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        for group, shapes in (("self_attn", attention), ("mlp", mlp)):
            for name, shape in shapes.items():
                tensors[f"model.layers.{i}.{group}.{name}_proj.weight"] = draw(*shape)
                if config["attention_bias" if group == "self_attn" else "mlp_bias"]:
                    tensors[f"model.layers.{i}.{group}.{name}_proj.bias"] = draw(shape[0])
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{norm}.weight"] = 1 + draw(hidden)
    return tensors


def to_bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves of the floats, cut off."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def save_safetensors(tensors: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Write a safetensors file; uint16 arrays are bfloat16."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, tensor in tensors.items():
        end = position + tensor.nbytes
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": tensor.shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    data = b"".join(tensor.tobytes() for tensor in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def tiny_tokenizer(vocab_size: int) -> Tokenizer:
    """Byte-level BPE with a few merges; every text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in (PAD, START, END)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    return tokenizer


def write_tiny_llama(directory: Path, *, dtype: str = "bf16", seed: int = 0, **config: Any) -> Path:
    """Write a checkpoint directory and return it: one safetensors file in "bf16" or "f32", config, tokenizer."""
    full = tiny_config(**config)
    weights = tiny_weights(full, seed)
    directory.mkdir(parents=True, exist_ok=True)
    save_safetensors(
        {name: to_bf16(tensor) for name, tensor in weights.items()} if dtype == "bf16" else weights,
        directory / "model.safetensors",
    )
    (directory / "config.json").write_text(json.dumps(full), encoding="utf-8")
    (directory / "generation_config.json").write_text('{"eos_token_id": [2, 0]}', encoding="utf-8")
    tiny_tokenizer(full["vocab_size"]).save(str(directory / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": END,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")
    return directory
