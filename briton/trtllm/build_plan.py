"""What is built: the arguments of `tensorrt_llm._tensorrt_engine.LLM(...)`, whose `.save(engine_dir)` writes engines.

Names and rules are those of release 1.2.1's BuildConfig, PluginConfig, CalibConfig and LookaheadDecodingConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from briton.config.config import Config
from briton.model.shapes import ModelShapes
from briton.trtllm.features import Features
from briton.trtllm.library_objects import LLM_API, Call, Member
from briton.trtllm.lora import LoraAdapter, lora_adapters, lora_cache, lora_modules, max_lora_rank
from briton.trtllm.memory import TOKENS_PER_BLOCK
from briton.trtllm.parallel import Parallelism
from briton.trtllm.quantization import QuantizationPlan

BUILDER_MODULE = "tensorrt_llm._tensorrt_engine"  # where LLM is
_SPECULATIVE_MODE_MODULE = "tensorrt_llm.models.modeling_utils"
_LORA_MODULE = "tensorrt_llm.lora_helper"
_LLM_ARGS_MODULE = f"{LLM_API}.llm_args"
_PLUGIN_MODULE = "tensorrt_llm.plugin"
# The one dataset name that the library itself loads (any path with this word in it, name "3.0.0", column "article").
_LIBRARY_DATASET = "cnn_dailymail"
_SIXTEEN_BIT_GEMM = (None, "W8A16", "W4A16")


@dataclass(frozen=True, slots=True)
class CalibrationPlan:
    """The text that scales are measured on."""

    calib_config: Call  # tensorrt_llm.llmapi.CalibConfig
    dataset: str
    # The library loads its default dataset by name and any other from a local directory alone, its split `train`, its
    # column `text`: the builder fetches it, and puts the directory in place of calib_config's calib_dataset.
    fetch_dataset: bool


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """Everything that the engine builder needs beside the checkpoint's files."""

    checkpoint: Mapping[str, str | None]  # source, repo, revision; empty without a checkpoint
    parallelism: Parallelism
    llm_arguments: Mapping[str, Any]  # further keywords of LLM: parallelism, dtype
    build_config: Call  # tensorrt_llm.llmapi.BuildConfig
    speculative_config: Call | None = None  # tensorrt_llm.llmapi.LookaheadDecodingConfig
    # tensorrt_llm.llmapi.llm_args.PeftCacheConfig: LLM starts an executor, too, whose default caches may be too small
    peft_cache_config: Call | None = None
    builder_gpus: int = 1  # for conversion and calibration
    gpu: str | None = None  # an engine runs on the architecture that it was built on
    lora_adapters: tuple[LoraAdapter, ...] = field(default=())


def build_plan(
    config: Config,
    shapes: ModelShapes,
    quantization: QuantizationPlan,
    features: Features,
    parallelism: Parallelism,
    gpu: str | None,
) -> BuildPlan:
    """Plan the build of an engine."""
    build = config.trt_llm.build
    checkpoint = config.checkpoint if config.has_checkpoint else None
    arguments: dict[str, Any] = {
        "tensor_parallel_size": parallelism.tensor,
        "pipeline_parallel_size": parallelism.pipeline,
        "dtype": shapes.dtype,
    }
    if parallelism.expert is not None:
        arguments["moe_expert_parallel_size"] = parallelism.expert
        arguments["moe_tensor_parallel_size"] = parallelism.tensor // parallelism.expert
    if build.lora_adapters:
        arguments["enable_lora"] = True
    cache = lora_cache(config, shapes, parallelism)
    return BuildPlan(
        checkpoint={"source": checkpoint.source.value, "repo": checkpoint.repo, "revision": checkpoint.revision}
        if checkpoint
        else {},
        parallelism=parallelism,
        llm_arguments=arguments,
        build_config=_build_config(config, shapes, quantization, features, parallelism),
        speculative_config=_speculative_config(features),
        peft_cache_config=cache.config(_LLM_ARGS_MODULE) if cache is not None else None,
        builder_gpus=build.num_builder_gpus or parallelism.world_size,
        gpu=gpu,
        lora_adapters=lora_adapters(config),
    )


def calibration_plan(config: Config, quantization: QuantizationPlan) -> CalibrationPlan | None:
    """The calibration of a build; None where no scale is measured.

    calib_size is a number of samples; in batches of one, it is the number of batches too.
    """
    if not quantization.needs_calibration:
        return None
    given = config.trt_llm.build.quantization_config
    arguments = {
        "device": "cuda",
        "calib_dataset": given.calib_dataset,
        "calib_batches": given.calib_size,
        "calib_batch_size": 1,
        "calib_max_seq_length": given.calib_max_seq_length,
        "tokenizer_max_seq_length": max(2048, given.calib_max_seq_length),
    }
    return CalibrationPlan(
        calib_config=Call("CalibConfig", arguments, LLM_API),
        dataset=given.calib_dataset,
        fetch_dataset=_LIBRARY_DATASET not in given.calib_dataset,
    )


def _build_config(
    config: Config,
    shapes: ModelShapes,
    quantization: QuantizationPlan,
    features: Features,
    parallelism: Parallelism,
) -> Call:
    build = config.trt_llm.build
    arguments: dict[str, Any] = {
        "max_input_len": features.max_seq_len,  # a prompt may be as long as a sequence, in chunks
        "max_seq_len": features.max_seq_len,
        "max_batch_size": features.max_batch_size,
        "max_beam_width": build.max_beam_width,
        "max_num_tokens": features.max_num_tokens,
        "max_prompt_embedding_table_size": build.max_prompt_embedding_table_size,
        "gather_context_logits": build.gather_all_token_logits,
        "gather_generation_logits": build.gather_all_token_logits,
        "strongly_typed": True,
        "max_draft_len": features.max_draft_len,
        "speculative_decoding_mode": Member(
            "SpeculativeDecodingMode", "LOOKAHEAD_DECODING" if features.lookahead else "NONE", _SPECULATIVE_MODE_MODULE
        ),
        "plugin_config": Call(
            "PluginConfig", _plugins(config, quantization, features, parallelism, shapes.dtype), _PLUGIN_MODULE
        ),
    }
    if build.lora_adapters:
        lora = {"lora_target_modules": lora_modules(config, shapes), "max_lora_rank": max_lora_rank(config)}
        arguments["lora_config"] = Call("LoraConfig", lora, _LORA_MODULE)
    return Call("BuildConfig", arguments, LLM_API)


def _plugins(
    config: Config, quantization: QuantizationPlan, features: Features, parallelism: Parallelism, dtype: str
) -> dict[str, Any]:
    """PluginConfig. use_fp8_context_fmha is not the config's: the public schema leaves it to the builder."""
    algorithm = quantization.quant_algo
    gemm = "nvfp4" if algorithm == "NVFP4" else "auto" if algorithm in _SIXTEEN_BIT_GEMM else None
    return {
        "dtype": dtype,
        "gpt_attention_plugin": "auto",
        "gemm_plugin": gemm,
        "nccl_plugin": "auto" if parallelism.world_size > 1 else None,
        "moe_plugin": "auto",
        "lora_plugin": "auto" if config.trt_llm.build.lora_adapters else None,
        "weight_only_quant_matmul_plugin": "auto" if algorithm in ("W8A16", "W4A16") else None,
        "context_fmha": True,
        "paged_kv_cache": True,  # kv_cache_type follows it; its enum has moved within the 1.2 series
        "remove_input_padding": True,
        "tokens_per_block": TOKENS_PER_BLOCK,
        "use_paged_context_fmha": features.use_paged_context_fmha,
        "use_fp8_context_fmha": features.use_fp8_context_fmha,
    }


def _speculative_config(features: Features) -> Call | None:
    if features.lookahead is None:
        return None
    sizes = features.lookahead
    arguments = {
        "max_window_size": sizes.window_size,
        "max_ngram_size": sizes.ngram_size,
        "max_verification_set_size": sizes.verification_set_size,
    }
    return Call("LookaheadDecodingConfig", arguments, LLM_API)
