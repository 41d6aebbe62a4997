"""`trt_llm.runtime`, of v1 and of v2."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field

from briton.config.enums import TrussTRTLLMBatchSchedulerPolicy
from briton.config.section import Section

# Limits are strict integers: "32" and true are refused.
Count = Annotated[int, Field(strict=True, ge=1)]
MaxSeqLen = Annotated[int, Field(strict=True, ge=1, le=1_048_576)]
MaxBatchSize = Annotated[int, Field(strict=True, ge=1, le=2048)]


class TrussTRTLLMRuntimeConfiguration(Section):
    """How a v1 engine is served."""

    # The public schema leaves the fraction open; nothing outside (0, 1] can be allocated.
    kv_cache_free_gpu_mem_fraction: Annotated[float, Field(gt=0, le=1)] = 0.9
    kv_cache_host_memory_bytes: Count | None = None
    enable_chunked_context: bool = True
    batch_scheduler_policy: TrussTRTLLMBatchSchedulerPolicy = TrussTRTLLMBatchSchedulerPolicy.GUARANTEED_NO_EVICT
    request_default_max_tokens: Count | None = None
    served_model_name: str | None = None
    total_token_limit: int = 500_000  # of the discontinued external drafts: read, without effect
    webserver_default_route: Literal["/v1/embeddings", "/rerank", "/predict", "/predict_tokens"] | None = None


class TRTLLMRuntimeConfigurationV2(Section):
    """How a v2 model is served; its limits stand here, not in `build`."""

    max_seq_len: MaxSeqLen | None = None
    max_batch_size: MaxBatchSize = 256
    max_num_tokens: Annotated[int, Field(strict=True, gt=64, le=131_072)] = 8192
    tensor_parallel_size: Count = 1
    enable_chunked_prefill: bool = True
    served_model_name: str | None = None
    patch_kwargs: dict[str, str | int | float | dict[Any, Any] | list[Any] | None] = Field(
        default_factory=dict, validation_alias=AliasChoices("patch_kwargs", "gated_features")
    )
