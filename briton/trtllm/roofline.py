"""A roofline estimate of decoding: the time to read weights and KV cache once a step, and nothing else.

It is an upper bound by memory bandwidth (Williams, Waterman and Patterson 2009). Arithmetic, communication between
ranks, launches and the host all come on top: expect a half to four fifths of it. Nothing of it was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from briton.model.shapes import ModelShapes
from briton.trtllm.gpus import Gpu
from briton.trtllm.memory import MemoryPlan
from briton.trtllm.parallel import Parallelism
from briton.trtllm.quantization import QuantizationPlan

CONTEXT_TOKENS = 2048  # that each sequence is taken to have in the cache, or max_seq_len if that is less


@dataclass(frozen=True, slots=True)
class DecodeEstimate:
    """Tokens a second of all sequences together, without speculation."""

    batch_1: float
    full_batch: float
    batch_size: int  # of the full batch: max_batch_size, or what the KV cache holds
    context_tokens: int
    basis: str = "estimate: an upper bound by memory bandwidth, not measured"


def estimate_decode(
    shapes: ModelShapes,
    quantization: QuantizationPlan,
    parallelism: Parallelism,
    memory: MemoryPlan,
    gpu: Gpu,
    *,
    max_batch_size: int,
    max_seq_len: int,
) -> DecodeEstimate:
    """The estimate for a model that fits."""
    context = min(CONTEXT_TOKENS, max_seq_len)
    cached = memory.kv_bytes_per_token_per_rank * context
    batch = max(1, min(max_batch_size, (memory.max_tokens_in_kv_cache or 0) // context))

    def tokens_per_second(sequences: int) -> float:
        weights = _weights_read(shapes, quantization, parallelism, memory, sequences)
        # The stages of a pipeline work one after another for one sequence, and at the same time for many.
        stages = parallelism.pipeline if sequences < parallelism.pipeline else 1
        return sequences * gpu.bandwidth / (weights + sequences * cached) / stages

    return DecodeEstimate(round(tokens_per_second(1), 1), round(tokens_per_second(batch), 1), batch, context)


def _weights_read(
    shapes: ModelShapes,
    quantization: QuantizationPlan,
    parallelism: Parallelism,
    memory: MemoryPlan,
    sequences: int,
) -> float:
    """Bytes of weights that a rank reads in one step: of an untied embedding only rows, of experts the chosen ones."""
    read = float(memory.weights_bytes_per_rank)
    if not shapes.tie_word_embeddings and parallelism.pipeline == 1:
        read -= shapes.embedding_parameters / parallelism.tensor * 2
    if shapes.num_experts:
        layers = shapes.num_sparse_layers / parallelism.pipeline
        experts = layers * shapes.num_experts * shapes.expert_parameters / parallelism.tensor
        idle = (1 - shapes.num_experts_per_tok / shapes.num_experts) ** sequences  # chosen by no sequence, on average
        read -= experts * quantization.mlp_weight_bytes * idle
    return read
