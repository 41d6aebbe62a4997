"""Tiny Llama checkpoints with random weights, one for each thing that Llama models differ in.

The weights are never committed: they are drawn again from a seed, the same on every machine (numpy's PCG64 and its
`standard_normal` are stable across releases by numpy's own promise for a fixed bit generator and algorithm, and
`make_goldens.py` stores a checksum that says so). Needs numpy and safetensors only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

VOCAB_SIZE = 320  # 256 bytes, 2 control tokens, the rest holes: a padded vocabulary
BEGIN, END = 256, 257


@dataclass(frozen=True)
class LlamaVariant:
    """Shapes of one tiny model, in the vocabulary of a Hugging Face config.json."""

    seed: int
    hidden_size: int = 128
    intermediate_size: int = 192
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 32
    tied: bool = False
    attention_bias: bool = False
    stored_as: str = "float32"
    prompt_lengths: tuple[int, ...] = (1, 31, 70)
    rope: dict[str, Any] = field(default_factory=lambda: {"rope_theta": 10000.0})  # as config.json spells it

    def config(self) -> dict[str, Any]:
        """The checkpoint's config.json."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": VOCAB_SIZE,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": self.tied,
            "attention_bias": self.attention_bias,
            "mlp_bias": False,
            "bos_token_id": BEGIN,
            "eos_token_id": END,
            "torch_dtype": self.stored_as,
            **self.rope,
        }


_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}

VARIANTS = {
    "grouped_query": LlamaVariant(seed=41),
    "multi_head_tied": LlamaVariant(seed=8, num_key_value_heads=4, tied=True),
    "one_key_value_head": LlamaVariant(seed=52, num_key_value_heads=1),
    "head_dim": LlamaVariant(seed=35, hidden_size=96, num_attention_heads=3, num_key_value_heads=1, head_dim=64),
    "attention_bias": LlamaVariant(seed=69, attention_bias=True),
    "half_precision_checkpoint": LlamaVariant(seed=62, stored_as="float16"),
    # beyond original_max_position_embeddings, where all three bands of frequencies matter; config.json's older spelling
    "rope_llama3": LlamaVariant(
        seed=9,
        prompt_lengths=(40, 130, 260),
        rope={"rope_theta": 10000.0, "rope_scaling": {"rope_type": "llama3", **_LLAMA3}},
    ),
    # the spelling of transformers 5
    "rope_linear": LlamaVariant(
        seed=12,
        prompt_lengths=(40, 130, 260),
        rope={"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
}


def weights(variant: LlamaVariant) -> dict[str, NDArray[Any]]:
    """The checkpoint's tensors by name, drawn in a fixed order from the seed.

    Gains are such that attention looks at positions and the most likely token stands out: with the usual 0.02 every
    logit would be nearly the same and every comparison would pass.
    """
    generator = np.random.Generator(np.random.PCG64(variant.seed))
    dtype = np.dtype(variant.stored_as)

    def draw(shape: tuple[int, ...], scale: float, mean: float = 0.0) -> NDArray[Any]:
        return (mean + scale * generator.standard_normal(shape)).astype(np.float32).astype(dtype)

    hidden, inner = variant.hidden_size, variant.intermediate_size
    query = variant.num_attention_heads * variant.head_dim
    key_value = variant.num_key_value_heads * variant.head_dim
    matrices = {  # name: [out, in], gain
        "self_attn.q_proj": ((query, hidden), 1.3),
        "self_attn.k_proj": ((key_value, hidden), 1.3),
        "self_attn.v_proj": ((key_value, hidden), 1.5),
        "self_attn.o_proj": ((hidden, query), 1.5),
        "mlp.gate_proj": ((inner, hidden), 1.5),
        "mlp.up_proj": ((inner, hidden), 1.5),
        "mlp.down_proj": ((hidden, inner), 1.5),
    }
    tensors = {"model.embed_tokens.weight": draw((VOCAB_SIZE, hidden), 0.3)}
    for layer in range(variant.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        for name, ((out, into), gain) in matrices.items():
            tensors[f"{prefix}{name}.weight"] = draw((out, into), gain / into**0.5)
            if variant.attention_bias and name.startswith("self_attn."):
                tensors[f"{prefix}{name}.bias"] = draw((out,), 0.5)
        tensors[f"{prefix}input_layernorm.weight"] = draw((hidden,), 0.2, 1.0)
        tensors[f"{prefix}post_attention_layernorm.weight"] = draw((hidden,), 0.2, 1.0)
    tensors["model.norm.weight"] = draw((hidden,), 0.2, 1.0)
    if not variant.tied:
        tensors["lm_head.weight"] = draw((VOCAB_SIZE, hidden), 4.0 / hidden**0.5)
    return tensors


def checksum(variant: LlamaVariant) -> str:
    """sha256 over all tensors: a golden holds only for the weights that it was made from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights(variant).items()):
        digest.update(name.encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def prompts(variant: LlamaVariant) -> tuple[tuple[int, ...], ...]:
    """Random prompts of the variant's lengths."""
    generator = np.random.Generator(np.random.PCG64(1000 + variant.seed))
    return tuple(tuple(generator.integers(0, VOCAB_SIZE, length).tolist()) for length in variant.prompt_lengths)


def write_checkpoint(variant: LlamaVariant, directory: Path) -> None:
    """Write a Hugging Face checkpoint: config, weights, and a tokenizer that maps each byte to a token."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(weights(variant), directory / "model.safetensors", metadata={"format": "pt"})
    control = [{"id": BEGIN, "content": "<s>"}, {"id": END, "content": "</s>"}]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    vocabulary = {symbol: i for i, symbol in enumerate(_byte_symbols())} | {c["content"]: c["id"] for c in control}
    files: dict[str, Any] = {
        "config.json": variant.config(),
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [{**token, **flags} for token in control],
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        },
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "chat_template": "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}",
        },
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, `bytes_to_unicode`), by byte."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    stand_ins = iter(range(256, 512))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]
