"""The shapes of a decoder as a Hugging Face config.json gives them: enough to count its weights and its KV cache.

Knows no executor. What an executor can run is for that executor to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from briton.errors import ConfigError

_KNOWN_MODELS = Path(__file__).with_name("known_models.json")  # name -> the keys of its config.json that are read here
_SIXTEEN_BIT = ("bfloat16", "float16")
_SWITCHED_WINDOW = ("Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM")  # off unless use_sliding_window
_ALWAYS_BIASED = ("Qwen2ForCausalLM", "Qwen2MoeForCausalLM")  # query, key and value; their config.json does not say so
_QK_NORMED = ("Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Gemma3ForCausalLM")


@dataclass(frozen=True, slots=True)
class ModelShapes:
    """A decoder's sizes, in elements, heads and layers."""

    architecture: str  # "LlamaForCausalLM"
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int  # of a dense MLP
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool = False
    num_experts: int = 0  # 0: dense
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0  # of one expert
    num_dense_layers: int = 0  # of a mixture of experts: layers with a dense MLP
    attention_bias: bool = False  # on query, key and value
    sliding_window: int | None = None  # tokens; None: every layer sees everything
    sliding_window_pattern: int = 1  # every so many-th layer sees everything; 1: none does
    dtype: str = "bfloat16"
    quant_algo: str | None = None  # of a checkpoint that is quantized already, in TensorRT-LLM's names
    kv_cache_quant_algo: str | None = None

    @property
    def attention_parameters(self) -> int:
        """Weights of the matrices of one layer's attention."""
        per_head = self.hidden_size * self.head_dim
        return 2 * per_head * (self.num_attention_heads + self.num_key_value_heads)

    @property
    def expert_parameters(self) -> int:
        """Weights of one expert: gate, up and down."""
        return 3 * self.hidden_size * self.moe_intermediate_size

    @property
    def dense_mlp_parameters(self) -> int:
        """Weights of one dense MLP: gate, up and down."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def num_sparse_layers(self) -> int:
        """Layers with a mixture of experts."""
        return self.num_hidden_layers - self.num_dense_layers if self.num_experts else 0

    @property
    def small_parameters(self) -> int:
        """One layer's norms and biases, which are never quantized."""
        norms = 2 * self.hidden_size * (2 if self.architecture.startswith("Gemma") else 1)
        qk_norms = 2 * self.head_dim if self.architecture in _QK_NORMED else 0
        heads = self.num_attention_heads + 2 * self.num_key_value_heads
        return norms + qk_norms + (heads * self.head_dim if self.attention_bias else 0)

    @property
    def embedding_parameters(self) -> int:
        """The token embedding; lm_head has as many again unless it is tied."""
        return self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All of them, a tied table once."""
        sparse = self.num_sparse_layers
        layers = self.num_hidden_layers * (self.attention_parameters + self.small_parameters)
        layers += (self.num_hidden_layers - sparse) * self.dense_mlp_parameters
        layers += sparse * self.num_experts * (self.expert_parameters + self.hidden_size)  # and the router's row
        return layers + self.hidden_size + self.embedding_parameters * (1 if self.tie_word_embeddings else 2)

    @property
    def attention_windows(self) -> tuple[int | None, ...]:
        """For each layer, how many tokens back it sees; None: all."""
        if self.sliding_window is None:
            return (None,) * self.num_hidden_layers
        every = self.sliding_window_pattern
        return tuple(
            None if every > 1 and layer % every == every - 1 else self.sliding_window
            for layer in range(self.num_hidden_layers)
        )


def shapes_of(config: Mapping[str, Any], where: str) -> ModelShapes:
    """The shapes in a parsed config.json, the text part of a multimodal one. `where` names the file in errors.

    Raises ConfigError, naming the key, for what is missing, wrong, or cannot be counted.
    """
    read = _Reader({**config, **(config.get("text_config") or {})}, where)
    architectures = config.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    if not isinstance(architecture, str):
        raise ConfigError(f"{where}: architectures is missing", "architectures")
    if read.get("kv_lora_rank") is not None:
        raise ConfigError(
            f"{where}: {architecture} has multi-head latent attention (kv_lora_rank), which no executor here runs",
            "kv_lora_rank",
        )
    hidden, heads = read.count("hidden_size"), read.count("num_attention_heads")
    layers = read.count("num_hidden_layers")
    experts = read.count("num_experts", read.get("num_local_experts"), 0)
    intermediate = read.count("intermediate_size")
    window, pattern = _window(read, architecture)
    quant_algo, kv_cache_quant_algo = _quantized(read)
    return ModelShapes(
        architecture=architecture,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=read.count("num_key_value_heads", heads),
        head_dim=read.count("head_dim", hidden // heads),
        intermediate_size=intermediate,
        vocab_size=read.count("vocab_size"),
        max_position_embeddings=read.count("max_position_embeddings"),
        tie_word_embeddings=bool(read.get("tie_word_embeddings", architecture.startswith("Gemma"))),
        num_experts=experts,
        num_experts_per_tok=read.count("num_experts_per_tok") if experts else 0,
        moe_intermediate_size=read.count("moe_intermediate_size", intermediate) if experts else 0,
        num_dense_layers=_dense_layers(read, layers) if experts else 0,
        attention_bias=bool(read.get("attention_bias", architecture in _ALWAYS_BIASED)),
        sliding_window=window,
        sliding_window_pattern=pattern,
        dtype=_dtype(read),
        quant_algo=quant_algo,
        kv_cache_quant_algo=kv_cache_quant_algo,
    )


def read_shapes(path: Path) -> ModelShapes:
    """The shapes in a config.json, with the hf_quant_config.json beside it where there is one.

    Raises ConfigError for a file that cannot be read or has no shapes.
    """
    config, beside = _read_json(path), path.with_name("hf_quant_config.json")
    return shapes_of(with_model_optimizer(config, _read_json(beside)) if beside.exists() else config, str(path))


def with_model_optimizer(config: Mapping[str, Any], quant_config: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json with what NVIDIA's Model Optimizer wrote beside it, in hf_quant_config.json."""
    return {**config, "quantization_config": {"quant_method": "modelopt", **(quant_config.get("quantization") or {})}}


def known_shapes(repo: str) -> ModelShapes | None:
    """The shapes of a model of the public examples, by its repository's name, without network; None for any other."""
    config = _known_models().get(repo)
    return None if config is None else shapes_of(config, repo)


def known_models() -> tuple[str, ...]:
    """The names that `known_shapes` knows."""
    return tuple(_known_models())


@lru_cache(maxsize=1)
def _known_models() -> dict[str, dict[str, Any]]:
    models: dict[str, dict[str, Any]] = json.loads(_KNOWN_MODELS.read_text(encoding="utf-8"))
    return models


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}", "model-config") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds no JSON object", "model-config")
    return config


class _Reader:
    """Keys of one config.json, with errors that name file and key."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.get = config.get
        self._where = where

    def count(self, key: str, *defaults: Any) -> int:
        """A positive integer, or the first default that is not None, which may be 0."""
        value = self.get(key)
        if value is None:
            value = next((default for default in defaults if default is not None), None)
            if value == 0:
                return 0
        if value is None:
            raise ConfigError(f"{self._where}: {key} is missing", key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{self._where}: {key} must be a positive integer, not {value!r}", key)
        return value


def _dtype(read: _Reader) -> str:
    """Sixteen bits whatever the checkpoint has: float32 weights are served in bfloat16."""
    dtype = read.get("torch_dtype") or read.get("dtype")
    return dtype if dtype in _SIXTEEN_BIT else "bfloat16"


def _window(read: _Reader, architecture: str) -> tuple[int | None, int]:
    if read.get("sliding_window") is None:
        return None, 1
    if architecture in _SWITCHED_WINDOW and not read.get("use_sliding_window"):
        return None, 1
    pattern = read.get("sliding_window_pattern") or read.get("_sliding_window_pattern")
    types = read.get("layer_types")
    if pattern is None and isinstance(types, list) and "full_attention" in types:
        pattern = types.index("full_attention") + 1
    return read.count("sliding_window"), pattern if isinstance(pattern, int) and pattern > 0 else 1


def _dense_layers(read: _Reader, layers: int) -> int:
    """Qwen's rule: a layer is sparse if it is a `decoder_sparse_step`-th one and not among `mlp_only_layers`."""
    step, dense = read.count("decoder_sparse_step", 1), set(read.get("mlp_only_layers") or ())
    return sum(layer in dense or (layer + 1) % step != 0 for layer in range(layers))


def _quantized(read: _Reader) -> tuple[str | None, str | None]:
    """(quant_algo, kv_cache_quant_algo) of a checkpoint quantized by NVIDIA's Model Optimizer, or of another kind."""
    found = read.get("quantization_config")
    if not isinstance(found, dict):
        return None, None
    method = found.get("quant_method")
    if method not in (None, "modelopt"):
        return str(method).upper(), None
    kv_cache = found.get("kv_cache_quant_algo")
    scheme = found.get("kv_cache_scheme")
    if kv_cache is None and isinstance(scheme, dict) and scheme.get("num_bits") == 8:
        kv_cache = "FP8" if scheme.get("type") == "float" else "INT8"
    algo = found.get("quant_algo")
    return (str(algo).upper() if algo else None), kv_cache
