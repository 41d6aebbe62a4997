"""What a config may say but had better not, and what has no effect here. Pure functions of a parsed config."""

from __future__ import annotations

from collections.abc import Iterator

from briton.config.enums import Accelerator
from briton.config.enums import TrussTRTLLMQuantizationType as Quantization
from briton.config.section import unknown_keys
from briton.config.trt_llm import TRTLLMConfigurationV2
from briton.config.truss import LEGACY_TAG, OPENAI_TAG, OTHER_TRUSS_KEYS, TrussConfig

_MANY_DRAFT_TOKENS = 512
_LARGE_SPECULATIVE_BATCH = 64


def advice(truss: TrussConfig) -> Iterator[str]:
    """The warnings of a config, each one complete line."""
    unknown = [
        ".".join(path) + (f" (did you mean {meant}?)" if meant else "")
        for path, meant in unknown_keys(truss)
        if not (len(path) == 1 and path[0] in OTHER_TRUSS_KEYS)
    ]
    if unknown:
        yield f"unknown keys, kept without effect: {', '.join(unknown)}"
    yield from _tags(truss)
    yield from _build(truss)
    if isinstance(truss.trt_llm, TRTLLMConfigurationV2):
        yield from _patches(truss.trt_llm)


def _tags(truss: TrussConfig) -> Iterator[str]:
    if not truss.is_v1_decoder:
        return
    if LEGACY_TAG in truss.tags:
        yield f"model_metadata.tags: `{LEGACY_TAG}` has no effect: only the OpenAI API is served"
    elif OPENAI_TAG not in truss.tags:
        yield f"model_metadata.tags: `{OPENAI_TAG}` is missing; the OpenAI API is served all the same"


def _build(truss: TrussConfig) -> Iterator[str]:
    build, accelerator = truss.trt_llm.build, truss.resources.accelerator_name
    if (speculator := build.speculator) is not None:
        if not speculator.drafts:
            yield (
                "trt_llm.build.speculator: drafts nothing: without enable_b10_lookahead it takes "
                "lookahead_windows_size and lookahead_ngram_size of at least 2"
            )
        if build.max_batch_size > _LARGE_SPECULATIVE_BATCH:
            yield (
                f"trt_llm.build.max_batch_size: {build.max_batch_size} is large for speculative decoding; "
                "32 to 64 is recommended"
            )
        if (speculator.num_draft_tokens or 0) > _MANY_DRAFT_TOKENS:
            yield (
                f"trt_llm.build.speculator.num_draft_tokens: {speculator.num_draft_tokens} is many; "
                f"up to {_MANY_DRAFT_TOKENS} is recommended"
            )
    if build.lora_adapters:
        yield "trt_llm.build.lora_adapters: the local executor serves the base model only"
    if build.is_encoder and build.quantization_type.quantizes_kv_cache:
        yield f"trt_llm.build.quantization_type: {build.quantization_type} is alpha for encoders: they keep no KV cache"
    if build.quantization_type is Quantization.WEIGHTS_ONLY_INT8 and accelerator is Accelerator.A100:
        yield f"trt_llm.build.quantization_type: {build.quantization_type} is not recommended on A100"
    if build.world_size & (build.world_size - 1):
        yield f"trt_llm.build.tensor_parallel_count: {build.world_size} ranks are unusual: not a power of two"
    experts = build.moe_expert_parallel_option
    if experts > 0 and build.tensor_parallel_count % experts:
        yield (
            f"trt_llm.build.moe_expert_parallel_option: {experts} does not divide tensor_parallel_count "
            f"({build.tensor_parallel_count})"
        )


def _patches(section: TRTLLMConfigurationV2) -> Iterator[str]:
    patches = section.runtime.patch_kwargs
    shadowing = [name for name in patches if name == "build_config" or name in type(section.runtime).model_fields]
    if shadowing:
        yield f"trt_llm.runtime.patch_kwargs: {', '.join(shadowing)} must be set in trt_llm.runtime itself"
    if patches:
        yield "trt_llm.runtime.patch_kwargs: for TensorRT-LLM; the local executor does not read it"
