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
    """The part of free memory that the KV cache gets. The local executor takes at most a quarter of the machine's."""
    kv_cache_host_memory_bytes: Count | None = None
    """TensorRT-LLM: host memory for KV blocks that leave the GPU."""
    enable_chunked_context: bool = True
    """Prompts may be computed in chunks, between steps of other requests."""
    batch_scheduler_policy: TrussTRTLLMBatchSchedulerPolicy = TrussTRTLLMBatchSchedulerPolicy.GUARANTEED_NO_EVICT
    """What is admitted: `guaranteed_no_evict` only what can be held to its end, `max_utilization` what fits now."""
    request_default_max_tokens: Count | None = None
    """`max_tokens` of requests that give none."""
    served_model_name: str | None = None
    """The model's name in the API."""
    total_token_limit: int = 500_000
    """Of the discontinued external drafts: read, without effect."""
    webserver_default_route: Literal["/v1/embeddings", "/rerank", "/predict", "/predict_tokens"] | None = None
    """Of encoder models, which are not served: read, without effect."""


class TRTLLMRuntimeConfigurationV2(Section):
    """How a v2 model is served; its limits stand here, not in `build`."""

    max_seq_len: MaxSeqLen | None = None
    """Tokens of prompt and answer together. Unset: the checkpoint's own."""
    max_batch_size: MaxBatchSize = 256
    """Sequences in one step."""
    max_num_tokens: Annotated[int, Field(strict=True, gt=64, le=131_072)] = 8192
    """Tokens in one step."""
    tensor_parallel_size: Count = 1
    """Ranks that compute each layer together."""
    enable_chunked_prefill: bool = True
    """Prompts may be computed in chunks."""
    served_model_name: str | None = None
    """The model's name in the API."""
    patch_kwargs: dict[str, str | int | float | dict[Any, Any] | list[Any] | None] = Field(
        default_factory=dict, validation_alias=AliasChoices("patch_kwargs", "gated_features")
    )
    """TensorRT-LLM: `kv_cache_config`, `scheduler_config` and `speculative_config` of its LLM API. `gated_features` is
    an older name."""
