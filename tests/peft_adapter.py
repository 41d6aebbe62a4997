"""A LoRA adapter as Hugging Face's peft saves it, of random numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from briton.model.shapes import ModelShapes


def write_peft(
    directory: Path,
    model: ModelShapes,
    *,
    rank: int = 2,
    modules: tuple[str, ...] = ("q_proj",),
    scale: float = 1.0,
    **config: Any,
) -> Path:
    """An adapter of `model`: layer 1 has all the modules, layer 0 the first. B is of the size of `scale`."""
    hidden, mlp = model.hidden_size, model.intermediate_size
    queries, keys = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    outputs = {"q_proj": queries, "k_proj": keys, "v_proj": keys, "gate_proj": mlp, "up_proj": mlp}
    random, tensors = np.random.default_rng(1), dict[str, Any]()
    for layer, names in ((1, modules), (0, modules[:1])):
        for name in names:
            block = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
            prefix = f"base_model.model.model.layers.{layer}.{block}.{name}"
            inputs = {"down_proj": mlp, "o_proj": queries}.get(name, hidden)
            a, b = (random.standard_normal(s, np.float32) for s in ((rank, inputs), (outputs.get(name, hidden), rank)))
            tensors |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b * np.float32(scale)}
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none", **config}
    (directory / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return directory
