"""Whether an engine was built for this config, this GPU and this library. Each refusal names both values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from briton.config.config import Config
from briton.config.lookahead import LookaheadConfig
from briton.errors import BuildError, ConfigError
from briton.model.engine_dir import EngineManifest, TrtllmBuild, load_manifest
from briton.model.shapes import ModelShapes
from briton.trtllm.features import Features
from briton.trtllm.library import Library
from briton.trtllm.parallel import Parallelism
from briton.trtllm.plan import TrtllmPlan, plan_of


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine directory, and how this config runs it."""

    directory: Path
    manifest: EngineManifest
    build: TrtllmBuild
    plan: TrtllmPlan


def open_engine(config: Config, directory: Path, rank: int) -> BuiltEngine:
    """Read an engine on one of its ranks, and plan anew what it was built from: the plan is the builder's, if the
    config has not changed. Raises BuildError for an engine of another executor, and as `plan_of` does."""
    manifest = load_manifest(directory, rank)
    build, shapes = manifest.trtllm, manifest.model
    if build is None or not isinstance(shapes, ModelShapes):
        raise BuildError(f"{directory} was built for target {manifest.target}; TensorRT-LLM needs target trtllm")
    # It is here and built: whether this GPU can hold it is the library's to say.
    return BuiltEngine(directory, manifest, build, plan_of(config, shapes, gpu=None))


def check_engine(built: BuiltEngine, library: Library) -> None:
    """Raise BuildError where the engine has to be built again, ConfigError where the config or the launch is at odds
    with it."""
    directory, build, features = built.directory, built.build, built.plan.features
    if build.library_version != library.version:
        raise BuildError(
            f"{directory} was built by tensorrt-llm {build.library_version}; {library.version} is installed: "
            "build the engine again"
        )
    if build.gpu_architecture != library.gpu_architecture:
        raise BuildError(
            f"{directory} was built for GPUs of {build.gpu_architecture}; this one is {library.gpu_architecture}: "
            "build the engine again"
        )
    _check_ranks(built, built.plan.build.parallelism, library)
    _check_limits(directory, build, features)
    if build.lookahead != features.lookahead:
        raise ConfigError(
            f"{directory} was built for lookahead {_sizes(build.lookahead)}; the config has "
            f"{_sizes(features.lookahead)}: they must be equal",
            "trt_llm.build.speculator",
        )
    adapters = [adapter.name for adapter in built.plan.build.lora_adapters]
    if sorted(build.lora_adapters) != sorted(adapters):
        raise ConfigError(
            f"{directory} was built for LoRA adapters {_names(build.lora_adapters)}; the config has {_names(adapters)}",
            "trt_llm.build.lora_adapters",
        )
    needed = 0 if build.lookahead is None else build.lookahead.draft_tokens
    if build.max_draft_len != needed:  # the library wants them equal
        raise BuildError(
            f"{directory} was built for {build.max_draft_len} draft tokens; lookahead {_sizes(build.lookahead)} needs "
            f"{needed}: build the engine again"
        )


def _check_ranks(built: BuiltEngine, parallelism: Parallelism, library: Library) -> None:
    sizes = (built.manifest.tensor_parallel_size, built.build.pipeline_parallel_size)
    asked = (parallelism.tensor, parallelism.pipeline)
    if sizes != asked:
        raise ConfigError(
            f"{built.directory} was built for tensor x pipeline parallelism {sizes[0]} x {sizes[1]}; the config has "
            f"{asked[0]} x {asked[1]}",
            "trt_llm.build.tensor_parallel_count",
        )
    if library.world_size != parallelism.world_size:
        raise ConfigError(
            f"{built.directory} was built for {parallelism.world_size} ranks; MPI has started {library.world_size}",
            "trt_llm.build.tensor_parallel_count",
        )


def _check_limits(directory: Path, build: TrtllmBuild, features: Features) -> None:
    for name in ("max_batch_size", "max_num_tokens", "max_seq_len"):
        asked, built = getattr(features, name), getattr(build, name)
        if asked > built:
            raise ConfigError(
                f"{directory} was built for {name} {built}; the config has {asked}", f"trt_llm.build.{name}"
            )
    if features.enable_chunked_context and not build.paged_context_fmha:
        raise ConfigError(
            f"{directory} was built with use_paged_context_fmha false; the config has enable_chunked_context true, "
            "which needs it",
            "trt_llm.runtime.enable_chunked_context",
        )


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "(none)"


def _sizes(sizes: LookaheadConfig | None) -> str:
    if sizes is None:
        return "off"
    return f"({sizes.window_size}, {sizes.ngram_size}, {sizes.verification_set_size})"
