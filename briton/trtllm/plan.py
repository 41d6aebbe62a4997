"""A config as TensorRT-LLM 1.2.1 would build and run it: pure data, made on any machine, before anything is built.

    plan_of(config, shapes, gpu) -> TrtllmPlan

The engine builder reads `build`, `quantization` and `calibration`; the executor reads `executor_config`, `launch` and
`serving`. `library_objects.make` turns their calls into the library's own objects.
"""

from __future__ import annotations

from dataclasses import dataclass

from briton.config.config import Config
from briton.errors import ConfigError
from briton.model.shapes import ModelShapes
from briton.trtllm.build_plan import BuildPlan, CalibrationPlan, build_plan, calibration_plan
from briton.trtllm.executor_plan import (
    LaunchPlan,
    ServingPlan,
    executor_config,
    launch_plan,
)
from briton.trtllm.features import Features, features_of
from briton.trtllm.gpus import GPUS, Gpu
from briton.trtllm.library_objects import Call
from briton.trtllm.lora import lora_cache
from briton.trtllm.memory import MemoryPlan, check_fits, plan_memory
from briton.trtllm.parallel import Parallelism, parallelism_of
from briton.trtllm.patches import Patches, patches_of
from briton.trtllm.quantization import QuantizationPlan, check_gpu, quantization_plan
from briton.trtllm.roofline import DecodeEstimate, estimate_decode

# What release 1.2.1 has a TensorRT model for, of those that the public examples and their kin name.
ARCHITECTURES = (
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GemmaForCausalLM",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
)


@dataclass(frozen=True, slots=True)
class TrtllmPlan:
    """One config, planned."""

    shapes: ModelShapes
    quantization: QuantizationPlan
    calibration: CalibrationPlan | None  # None: nothing is measured
    features: Features  # effective limits and switches
    build: BuildPlan
    executor_config: Call  # tensorrt_llm.bindings.executor.ExecutorConfig
    launch: LaunchPlan
    serving: ServingPlan
    memory: MemoryPlan
    decode: DecodeEstimate | None  # None where the GPU is not known
    notes: tuple[str, ...]  # what became of the config otherwise than it says, one line each


def gpu_of(config: Config) -> Gpu | None:
    """The GPU that `resources.accelerator` names."""
    return GPUS[config.accelerator_name] if config.accelerator_name else None


def plan_of(config: Config, shapes: ModelShapes, gpu: Gpu | None) -> TrtllmPlan:
    """Plan a decoder config for `gpu` (None: not known, and nothing is said about memory).

    Raises ConfigError, naming the field and the numbers, for what TensorRT-LLM cannot build, run or fit.
    """
    if config.is_encoder:
        raise ConfigError(
            f"trt_llm.build.base_model is {config.trt_llm.build.base_model} ({config.family}): only decoder models are "
            "served, no embedding, reranking or classification models",
            "trt_llm.build.base_model",
        )
    patches = patches_of(config)
    quantization = quantization_plan(config.quantization_type, shapes, patches.kv_cache_quant_algo)
    if gpu is not None:
        check_gpu(quantization, gpu)
    parallelism = parallelism_of(config, shapes)
    features = features_of(config, shapes, quantization, patches, gpu)
    cache = lora_cache(config, shapes, parallelism)
    fraction = float(patches.kv_cache.get("free_gpu_memory_fraction", config.kv_cache_memory_fraction))
    memory = plan_memory(
        shapes,
        quantization,
        features,
        parallelism,
        gpu,
        kv_fraction=fraction,
        kv_max_tokens=patches.kv_cache.get("max_tokens"),
        lora_bytes=cache.device_bytes if cache is not None else 0,
        all_logits=config.trt_llm.build.gather_all_token_logits,
    )
    section = "runtime" if config.family == "BISV2" else "build"
    check_fits(memory, features, fraction, f"trt_llm.{section}.max_seq_len")
    return TrtllmPlan(
        shapes=shapes,
        quantization=quantization,
        calibration=calibration_plan(config, quantization),
        features=features,
        build=build_plan(config, shapes, quantization, features, parallelism, gpu.name if gpu else None),
        executor_config=executor_config(config, shapes, features, parallelism, patches),
        launch=launch_plan(config, parallelism),
        serving=ServingPlan(config.served_model_name, config.default_max_tokens, config.total_token_limit),
        memory=memory,
        decode=_decode(shapes, quantization, parallelism, features, memory, gpu),
        notes=(*features.notes, *_notes(config, shapes, quantization, parallelism, patches, gpu)),
    )


def _decode(
    shapes: ModelShapes,
    quantization: QuantizationPlan,
    parallelism: Parallelism,
    features: Features,
    memory: MemoryPlan,
    gpu: Gpu | None,
) -> DecodeEstimate | None:
    if gpu is None:
        return None
    return estimate_decode(
        shapes,
        quantization,
        parallelism,
        memory,
        gpu,
        max_batch_size=features.max_batch_size,
        max_seq_len=features.max_seq_len,
    )


def _notes(
    config: Config,
    shapes: ModelShapes,
    quantization: QuantizationPlan,
    parallelism: Parallelism,
    patches: Patches,
    gpu: Gpu | None,
) -> list[str]:
    build, notes = config.trt_llm.build, list[str]()
    if shapes.architecture not in ARCHITECTURES:
        notes.append(f"{shapes.architecture} is not known to have a TensorRT model in TensorRT-LLM 1.2.1")
    if gpu is None:
        notes.append("resources.accelerator names no GPU: whether the model fits is not known")
    if quantization.is_prequantized:
        notes.append(
            f"the checkpoint is quantized already ({quantization.quant_algo}): nothing is quantized or calibrated; "
            "that the library's engine builder reads it is not verified"
        )
    if quantization.model_optimizer_recipe:
        notes.append(
            f"{quantization.quantization_type}: quantized by nvidia-modelopt's {quantization.model_optimizer_recipe} "
            "before the build, which QuantConfig has no word for"
        )
    if parallelism.world_size > 1:
        notes.append("several ranks need 1 GiB or more of /dev/shm: docker run --shm-size 1g")
    if config.kv_cache_host_memory_bytes is not None:
        notes.append("kv_cache_host_memory_bytes is pinned memory of each rank")
    if build.plugin_configuration.use_fp8_context_fmha:
        notes.append("use_fp8_context_fmha has no effect: it is on wherever weights and KV cache allow it")
    if config.total_token_limit is not None and "total_token_limit" in config.trt_llm.runtime.model_fields_set:
        notes.append("total_token_limit has no effect: only the discontinued external drafts were admitted by it")
    if patches.without_effect:
        notes.append(f"patch_kwargs without effect on an engine's executor: {', '.join(patches.without_effect)}")
    return notes
