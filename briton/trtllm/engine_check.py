"""Whether an engine was built for this config, this GPU and this library. Each refusal names both values."""

from __future__ import annotations

from pathlib import Path

from briton.engine_dir import EngineManifest, TrtllmBuild
from briton.errors import BuildError, ConfigError
from briton.trtllm.library import Library
from briton.trtllm.settings import TrtllmSettings
from briton.types import LookaheadConfig


def check_engine(directory: Path, manifest: EngineManifest, settings: TrtllmSettings, library: Library) -> TrtllmBuild:
    """What the engine was built for. Raises BuildError where it has to be built again, ConfigError where the config
    or the launch is at odds with it."""
    build = manifest.trtllm
    if manifest.target != "trtllm" or build is None:
        raise BuildError(f"{directory} was built for target {manifest.target}; TensorRT-LLM needs target trtllm")
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
    _check_ranks(directory, manifest, build, settings, library)
    _check_limits(directory, build, settings)
    if build.lookahead != settings.lookahead:
        raise ConfigError(
            f"{directory} was built for lookahead {_sizes(build.lookahead)}; the config has "
            f"{_sizes(settings.lookahead)}: they must be equal",
            "trt_llm.build.speculator",
        )
    needed = 0 if build.lookahead is None else build.lookahead.draft_tokens
    if build.max_draft_len != needed:  # the library wants them equal
        raise BuildError(
            f"{directory} was built for {build.max_draft_len} draft tokens; lookahead {_sizes(build.lookahead)} needs "
            f"{needed}: build the engine again"
        )
    return build


def _check_ranks(
    directory: Path, manifest: EngineManifest, build: TrtllmBuild, settings: TrtllmSettings, library: Library
) -> None:
    built = (manifest.tensor_parallel_size, build.pipeline_parallel_size)
    asked = (settings.tensor_parallel_size, settings.pipeline_parallel_size)
    if built != asked:
        raise ConfigError(
            f"{directory} was built for tensor x pipeline parallelism {built[0]} x {built[1]}; the config has "
            f"{asked[0]} x {asked[1]}",
            "trt_llm.build.tensor_parallel_count",
        )
    if library.world_size != settings.world_size:
        raise ConfigError(
            f"{directory} was built for {settings.world_size} ranks; MPI has started {library.world_size}",
            "trt_llm.build.tensor_parallel_count",
        )


def _check_limits(directory: Path, build: TrtllmBuild, settings: TrtllmSettings) -> None:
    for name in ("max_batch_size", "max_num_tokens", "max_seq_len"):
        asked, built = getattr(settings, name), getattr(build, name)
        if asked is not None and asked > built:
            raise ConfigError(
                f"{directory} was built for {name} {built}; the config has {asked}", f"trt_llm.build.{name}"
            )
    if settings.enable_chunked_context and not build.paged_context_fmha:
        raise ConfigError(
            f"{directory} was built with use_paged_context_fmha false; the config has enable_chunked_context true, "
            "which needs it",
            "trt_llm.runtime.enable_chunked_context",
        )


def _sizes(sizes: LookaheadConfig | None) -> str:
    if sizes is None:
        return "off"
    return f"({sizes.window_size}, {sizes.ngram_size}, {sizes.verification_set_size})"
