"""Will it fit: the bytes of weights, activations and KV cache of one rank, and how many tokens are left room for.

Weights and KV cache are counted from the shapes and are exact, but for a scale here and there. Activations, logits and
what CUDA and the library take are estimates after TensorRT-LLM's own account of its memory
(https://nvidia.github.io/TensorRT-LLM/reference/memory.html); none of this was measured on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from briton.errors import ConfigError
from briton.model.shapes import ModelShapes
from briton.trtllm.features import Features
from briton.trtllm.gpus import Gpu
from briton.trtllm.parallel import Parallelism
from briton.trtllm.quantization import QuantizationPlan

TOKENS_PER_BLOCK = 32  # of the KV cache; the library's default
_GIB = 1024**3
_SIXTEEN_BIT = 2  # bytes
_CONTEXT_BYTES = 1 * _GIB  # the CUDA context, kernels, and the library's own buffers
_NCCL_BYTES = _GIB // 2  # buffers for talking to other ranks
_LOGITS_COPIES = 2  # float32, the engine's output and the decoder's


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of one rank unless it says otherwise. What depends on the GPU is None where the config names none."""

    gpu: str | None
    gpu_memory_bytes: int | None
    weights_bytes_per_rank: int
    activation_bytes_per_rank: int  # an estimate, with logits
    reserved_bytes_per_rank: int  # an estimate: CUDA context, NCCL, adapters
    kv_bytes_per_token: int  # of the whole model
    kv_bytes_per_token_per_rank: int
    kv_bytes_per_full_length_request_per_rank: int
    kv_cache_bytes_per_rank: int | None
    max_tokens_in_kv_cache: int | None
    full_length_requests: int | None  # of max_seq_len tokens, at the same time
    fits: bool | None


def weights_bytes(shapes: ModelShapes, quantization: QuantizationPlan, parallelism: Parallelism) -> int:
    """Bytes of the weights of the rank that has most. A tied embedding is there once: the library shares the table."""
    tp, layers = parallelism.tensor, parallelism.layers(shapes)
    heads = 2 * shapes.num_attention_heads // tp + 2 * parallelism.kv_heads(shapes)  # q and o; k and v
    attention = heads * shapes.head_dim * shapes.hidden_size * quantization.attention_weight_bytes
    sparse = -(-shapes.num_sparse_layers * layers // shapes.num_hidden_layers)
    mlp = (layers - sparse) * shapes.dense_mlp_parameters / tp * quantization.mlp_weight_bytes
    mlp += sparse * shapes.num_experts * shapes.expert_parameters / tp * quantization.mlp_weight_bytes
    routers = sparse * shapes.num_experts * shapes.hidden_size * _SIXTEEN_BIT
    small = (layers * shapes.small_parameters + shapes.hidden_size) * _SIXTEEN_BIT
    tables = 1 if shapes.tie_word_embeddings or parallelism.pipeline > 1 else 2
    embedding = tables * -(-shapes.vocab_size // tp) * shapes.hidden_size * _SIXTEEN_BIT
    return int(layers * attention + mlp) + routers + small + embedding


def activation_bytes(shapes: ModelShapes, features: Features, parallelism: Parallelism, *, all_logits: bool) -> int:
    """An estimate of what TensorRT sets aside for one step of max_num_tokens, and of the logits.

    Live at the widest point of a layer: the residual and its norm, and gate, up and their product.
    """
    tp = parallelism.tensor
    dense = 3 * shapes.intermediate_size if shapes.num_dense_layers or not shapes.num_experts else 0
    sparse = 3 * shapes.moe_intermediate_size * shapes.num_experts_per_tok if shapes.num_experts else 0
    qkv = (shapes.num_attention_heads + 2 * shapes.num_key_value_heads) * shapes.head_dim
    per_token = 2 * shapes.hidden_size + max(dense, sparse, qkv) // tp
    rows = features.max_batch_size * (1 + features.max_draft_len) * _LOGITS_COPIES
    rows += features.max_num_tokens if all_logits else 0
    return features.max_num_tokens * per_token * _SIXTEEN_BIT + rows * shapes.vocab_size * 4


def kv_bytes_per_token(shapes: ModelShapes, quantization: QuantizationPlan) -> int:
    """Keys and values of one token in all layers of the whole model."""
    elements = 2 * shapes.num_key_value_heads * shapes.head_dim * shapes.num_hidden_layers
    return elements * quantization.kv_cache_bytes


def plan_memory(
    shapes: ModelShapes,
    quantization: QuantizationPlan,
    features: Features,
    parallelism: Parallelism,
    gpu: Gpu | None,
    *,
    kv_fraction: float,
    kv_max_tokens: int | None = None,
    lora_bytes: int = 0,
    all_logits: bool = False,
) -> MemoryPlan:
    """Count. `kv_fraction` is the share of what weights and activations leave that becomes the KV cache, which holds no
    more than `kv_max_tokens`."""
    weights = weights_bytes(shapes, quantization, parallelism)
    activations = activation_bytes(shapes, features, parallelism, all_logits=all_logits)
    reserved = _CONTEXT_BYTES + (_NCCL_BYTES if parallelism.world_size > 1 else 0) + lora_bytes
    layer_bytes = 2 * parallelism.kv_heads(shapes) * shapes.head_dim * quantization.kv_cache_bytes
    layers = parallelism.layers(shapes)
    windows = shapes.attention_windows[:layers]
    per_token = layer_bytes * layers
    full_length = layer_bytes * _cached_tokens(windows, features.sequence_tokens)
    pool = tokens = requests = None
    if gpu is not None:
        pool = max(0, int((gpu.memory_bytes - weights - activations - reserved) * kv_fraction))
        pool = pool if kv_max_tokens is None else min(pool, kv_max_tokens * per_token)
        tokens = pool // per_token // TOKENS_PER_BLOCK * TOKENS_PER_BLOCK
        requests = pool // full_length
    return MemoryPlan(
        gpu=gpu.name if gpu else None,
        gpu_memory_bytes=gpu.memory_bytes if gpu else None,
        weights_bytes_per_rank=weights,
        activation_bytes_per_rank=activations,
        reserved_bytes_per_rank=reserved,
        kv_bytes_per_token=kv_bytes_per_token(shapes, quantization),
        kv_bytes_per_token_per_rank=per_token,
        kv_bytes_per_full_length_request_per_rank=full_length,
        kv_cache_bytes_per_rank=pool,
        max_tokens_in_kv_cache=tokens,
        full_length_requests=requests,
        fits=None if requests is None else requests >= 1,
    )


def check_fits(memory: MemoryPlan, features: Features, kv_fraction: float, max_seq_len_field: str) -> None:
    """Raise ConfigError, with the numbers, where the weights or one full-length request find no room."""
    if memory.fits is not False or memory.gpu_memory_bytes is None or memory.kv_cache_bytes_per_rank is None:
        return
    weights, needed = memory.weights_bytes_per_rank, memory.kv_bytes_per_full_length_request_per_rank
    taken = (
        f"weights take {in_gib(weights)} a rank, activations {in_gib(memory.activation_bytes_per_rank)}, "
        f"CUDA and buffers {in_gib(memory.reserved_bytes_per_rank)} (estimates)"
    )
    if not memory.kv_cache_bytes_per_rank:
        raise ConfigError(
            f"the model does not fit on {memory.gpu}, which has {in_gib(memory.gpu_memory_bytes)}: {taken}. "
            "Use more ranks, a smaller quantization_type or a lower max_num_tokens",
            "resources.accelerator",
        )
    raise ConfigError(
        f"{max_seq_len_field}: a request of {features.max_seq_len} tokens does not fit on {memory.gpu}: it needs "
        f"{in_gib(needed)} of KV cache a rank, and {in_gib(memory.kv_cache_bytes_per_rank)} are there "
        f"({memory.max_tokens_in_kv_cache} tokens): {taken}, and {kv_fraction:g} of the rest of "
        f"{in_gib(memory.gpu_memory_bytes)} is KV cache. Lower max_seq_len, or use more ranks or an 8-bit KV cache",
        max_seq_len_field,
    )


def in_gib(size: int) -> str:
    """`size` bytes for people."""
    return f"{size / _GIB:.1f} GiB"


def _cached_tokens(windows: Sequence[int | None], tokens: int) -> int:
    """Tokens of one sequence, summed over layers, in whole blocks."""
    seen = (tokens if window is None else min(tokens, window) for window in windows)
    return sum(-(-count // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK for count in seen)
