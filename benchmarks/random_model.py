"""A Llama checkpoint of any shape with random weights: for what a step costs, which does not ask what they mean."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_ONE_BLOCK = 1 << 22  # weights drawn; the rest repeats them


@dataclass(frozen=True)
class Shape:
    """A Llama's."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocab: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"random-{self.hidden}-{self.inner}-{self.layers}-{self.heads}-{self.key_value_heads}-{self.vocab}"


BILLION = Shape(hidden=2048, inner=8192, layers=16, heads=32, key_value_heads=8, head_dim=64, vocab=49_152)


def write_random_model(folder: Path, shape: Shape, tokenizer: Path) -> Path:
    """A checkpoint directory in bf16 below `folder`, with the tokenizer of another model. Kept when it is there."""
    directory = folder / shape.name
    if (directory / "config.json").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    query, key = shape.heads * shape.head_dim, shape.key_value_heads * shape.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocab, shape.hidden),
        "model.norm.weight": (shape.hidden,),
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.self_attn.q_proj.weight": (query, shape.hidden),
            f"{prefix}.self_attn.k_proj.weight": (key, shape.hidden),
            f"{prefix}.self_attn.v_proj.weight": (key, shape.hidden),
            f"{prefix}.self_attn.o_proj.weight": (shape.hidden, query),
            f"{prefix}.mlp.gate_proj.weight": (shape.inner, shape.hidden),
            f"{prefix}.mlp.up_proj.weight": (shape.inner, shape.hidden),
            f"{prefix}.mlp.down_proj.weight": (shape.hidden, shape.inner),
            f"{prefix}.input_layernorm.weight": (shape.hidden,),
            f"{prefix}.post_attention_layernorm.weight": (shape.hidden,),
        }
    _write(directory / "model.safetensors", shapes)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, directory / name)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.key_value_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    }
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")  # last: it says that all is there
    return directory


def _write(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    drawn = (np.random.default_rng(0).standard_normal(_ONE_BLOCK) * 0.02).astype(np.float32)
    block = (drawn.view(np.uint32) >> 16).astype(np.uint16)
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            file.write(np.resize(block, int(np.prod(shape))).tobytes())
