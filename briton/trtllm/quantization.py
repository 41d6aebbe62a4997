"""`quantization_type` in TensorRT-LLM's terms: QuantAlgo of weights and KV cache, bytes a weight, and how to get there.

Sources: the names of the public schema and its documentation (fp8_kv and fp4_kv: an FP8 KV cache; fp4_mlp_only: 16 bits
in attention and KV cache; fp4 is NVFP4), and release 1.2.1's QuantConfig. INT4 is weight-only W4A16, as its name in the
schema says (WEIGHTS_ONLY_INT4), not AWQ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from briton.config.enums import TrussTRTLLMQuantizationType as Quantization
from briton.errors import ConfigError
from briton.model.shapes import ModelShapes
from briton.trtllm.gpus import Gpu
from briton.trtllm.library_objects import LLM_API, Call, Member

FIELD = "trt_llm.build.quantization_type"

# Bytes of one weight in a quantized matrix. NVFP4 has an FP8 scale for 16 weights; the scales of the others, one a row
# or a matrix, are too few to count.
_WEIGHT_BYTES = {"FP8": 1.0, "NVFP4": 0.5 + 1 / 16, "W8A16": 1.0, "W4A16": 0.5, "W8A8_SQ_PER_CHANNEL": 1.0}
_ALGORITHMS: dict[Quantization, tuple[str | None, str | None]] = {  # (weights, KV cache)
    Quantization.NO_QUANT: (None, None),
    Quantization.WEIGHTS_ONLY_INT8: ("W8A16", None),
    Quantization.WEIGHTS_KV_INT8: ("W8A16", "INT8"),
    Quantization.WEIGHTS_ONLY_INT4: ("W4A16", None),
    Quantization.WEIGHTS_INT4_KV_INT8: ("W4A16", "INT8"),
    Quantization.SMOOTH_QUANT: ("W8A8_SQ_PER_CHANNEL", None),
    Quantization.FP8: ("FP8", None),
    Quantization.FP8_KV: ("FP8", "FP8"),
    Quantization.FP4: ("NVFP4", None),
    Quantization.FP4_KV: ("NVFP4", "FP8"),
    Quantization.FP4_MLP_ONLY: ("NVFP4", None),
}
_WEIGHT_ONLY = ("W8A16", "W4A16")
_SIXTEEN_BIT_IN_MLP_ONLY = ("*attention*", "lm_head")  # of TensorRT-LLM's module names
_MLP_ONLY_RECIPE = "NVFP4_MLP_ONLY_CFG"


@dataclass(frozen=True, slots=True)
class QuantizationPlan:
    """What becomes of the weights and the KV cache."""

    quantization_type: str  # as the config says
    quant_algo: (
        str | None
    )  # QuantAlgo of the matrices; None: 16 bits. Embedding, lm_head, router and norms stay 16 bits
    kv_cache_quant_algo: str | None
    attention_weight_bytes: float  # bytes of one weight of attention's matrices, of the MLP's
    mlp_weight_bytes: float
    kv_cache_bytes: int  # of one element
    is_prequantized: bool = False  # by the checkpoint itself: nothing is left to do
    exclude_modules: tuple[str, ...] = ()
    # A recipe of nvidia-modelopt that QuantConfig has no word for: the builder quantizes with it, exports a
    # TensorRT-LLM checkpoint and builds from that.
    model_optimizer_recipe: str | None = None

    @property
    def needs_calibration(self) -> bool:
        """Scales of activations or of the KV cache are measured on text; weight-only scales are not."""
        return not self.is_prequantized and (
            self.kv_cache_quant_algo is not None
            or (self.quant_algo is not None and self.quant_algo not in _WEIGHT_ONLY)
        )

    @property
    def quant_config(self) -> Call:
        """tensorrt_llm.llmapi.QuantConfig."""
        arguments: dict[str, Any] = {
            name: Member("QuantAlgo", algorithm, LLM_API)
            for name, algorithm in (
                ("quant_algo", self.quant_algo),
                ("kv_cache_quant_algo", self.kv_cache_quant_algo),
            )
            if algorithm is not None
        }
        if self.exclude_modules:
            arguments["exclude_modules"] = list(self.exclude_modules)
        return Call("QuantConfig", arguments, LLM_API)


def quantization_plan(quantization: Quantization, shapes: ModelShapes, kv_cache: str | None = None) -> QuantizationPlan:
    """The plan of a quantization_type for a checkpoint; `kv_cache` overrides the algorithm of the KV cache.

    A checkpoint that Model Optimizer has quantized stays as it is under no_quant. Raises ConfigError for one that would
    be quantized twice, or was quantized by other means.
    """
    algorithm, kv_algorithm = _ALGORITHMS[quantization]
    if shapes.quant_algo is not None:
        if algorithm is not None:
            raise ConfigError(
                f"{FIELD} is {quantization}, and the checkpoint is already {shapes.quant_algo}: use no_quant",
                FIELD,
            )
        if shapes.quant_algo not in _WEIGHT_BYTES:
            raise ConfigError(
                f"the checkpoint is quantized with {shapes.quant_algo}, which is not known here: known are "
                f"{', '.join(_WEIGHT_BYTES)}, by NVIDIA's Model Optimizer",
                "trt_llm.build.checkpoint_repository.repo",
            )
        algorithm, kv_algorithm = shapes.quant_algo, shapes.kv_cache_quant_algo
    kv_algorithm = kv_cache or kv_algorithm
    mlp_only = quantization is Quantization.FP4_MLP_ONLY
    weight_bytes = 2.0 if algorithm is None else _WEIGHT_BYTES[algorithm]
    return QuantizationPlan(
        quantization_type=quantization.value,
        quant_algo=algorithm,
        kv_cache_quant_algo=kv_algorithm,
        attention_weight_bytes=2.0 if mlp_only else weight_bytes,
        mlp_weight_bytes=weight_bytes,
        kv_cache_bytes=2 if kv_algorithm is None else 1,
        is_prequantized=shapes.quant_algo is not None,
        exclude_modules=_SIXTEEN_BIT_IN_MLP_ONLY if mlp_only else (),
        model_optimizer_recipe=_MLP_ONLY_RECIPE if mlp_only else None,
    )


def check_gpu(plan: QuantizationPlan, gpu: Gpu) -> None:
    """Raise ConfigError, with the GPU's compute capability, where it has no kernels for the plan."""
    what = plan.quant_algo or plan.kv_cache_quant_algo
    if plan.is_prequantized:
        what = f"the checkpoint's own {what}"
    if "NVFP4" in (plan.quant_algo, plan.kv_cache_quant_algo) and not gpu.has_fp4:
        needs = "compute capability 10.0 or newer (B200)"
    elif "FP8" in (plan.quant_algo, plan.kv_cache_quant_algo) and not gpu.has_fp8:
        needs = "compute capability 8.9 or newer (L4, H100)"
    elif _is_integer(plan) and not gpu.has_integer_kernels:
        needs = "compute capability below 10.0: TensorRT-LLM has no integer kernels on Blackwell; use fp8 or fp4"
    else:
        return
    raise ConfigError(
        f"{FIELD} is {plan.quantization_type} ({what}), which is not supported on {gpu.name}: "
        f"{gpu.name} has compute capability {gpu.capability}, and {what} needs {needs}",
        FIELD,
    )


def _is_integer(plan: QuantizationPlan) -> bool:
    return plan.quant_algo in (*_WEIGHT_ONLY, "W8A8_SQ_PER_CHANNEL") or plan.kv_cache_quant_algo == "INT8"
