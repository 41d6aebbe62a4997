"""What the local executor makes of a `quantization_type`. Depends on the config alone, not on the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from briton.config.config import Config
from briton.config.enums import TrussTRTLLMQuantizationType as Quantization

WeightsDtype = Literal["bf16", "f32", "int8", "int4"]
KVCacheDtype = Literal["bf16", "u8", "f32"]

# More tokens a step gain nothing on a CPU (prefill is fastest at 256 to 512), and a long step holds up every running
# request and every cancellation.
STEP_TOKENS = 512


@dataclass(frozen=True)
class LocalTarget:
    """Element types on the local executor."""

    attention: WeightsDtype  # attention, embedding and lm_head matrices
    mlp: WeightsDtype
    kv_cache: KVCacheDtype
    carry_over: bool  # keep a GGUF's own 4 and 8 bit blocks as they are
    substitution: str | None  # one sentence, where the config's quantization is replaced by another


def step_tokens(config: Config) -> int:
    """Tokens that the local executor computes in one step: max_num_tokens, but with chunked context no more than
    pays."""
    if not config.enable_chunked_context:
        return config.max_num_tokens
    return min(config.max_num_tokens, max(STEP_TOKENS, config.max_batch_size))


def map_quantization(config: Config) -> LocalTarget:
    """Map quantization_type and briton.local to element types.

    `precision: f32` stores what the config leaves unquantized as float32, a GGUF's blocks too: it is the exact mode.
    """
    quantization, local = config.quantization_type, config.briton.local
    exact = local.precision == "f32"
    attention, mlp = _weights(quantization, "f32" if exact else "bf16")
    kv_cache: KVCacheDtype = "f32" if exact else "u8" if quantization.quantizes_kv_cache else "bf16"
    if local.kv_cache_dtype is not None:
        kv_cache = local.kv_cache_dtype
    is_unquantized = quantization is Quantization.NO_QUANT
    return LocalTarget(
        attention=attention,
        mlp=mlp,
        kv_cache=kv_cache,
        carry_over=is_unquantized and not exact,
        substitution=_substitution(quantization, attention, mlp, kv_cache),
    )


def _weights(quantization: Quantization, unquantized: WeightsDtype) -> tuple[WeightsDtype, WeightsDtype]:
    """Element types of (attention, MLP)."""
    match quantization:
        case Quantization.NO_QUANT:
            return unquantized, unquantized
        case Quantization.FP4_MLP_ONLY:
            return "int8", "int4"
        case (
            Quantization.FP4 | Quantization.FP4_KV | Quantization.WEIGHTS_ONLY_INT4 | Quantization.WEIGHTS_INT4_KV_INT8
        ):
            return "int4", "int4"
        case _:
            return "int8", "int8"


def _substitution(
    quantization: Quantization, attention: WeightsDtype, mlp: WeightsDtype, kv_cache: KVCacheDtype
) -> str | None:
    exactly = {
        Quantization.NO_QUANT,
        Quantization.WEIGHTS_ONLY_INT8,
        Quantization.WEIGHTS_KV_INT8,
        Quantization.WEIGHTS_ONLY_INT4,
        Quantization.WEIGHTS_INT4_KV_INT8,
    }
    if quantization in exactly:
        return None
    weights = f"{mlp} weights" if attention == mlp else f"{mlp} MLP weights and {attention} weights elsewhere"
    return f"{quantization} is not available on the local executor: it uses {weights} and a {kv_cache} KV cache instead"
