"""Which executor serves a config, and what it cannot serve."""

from __future__ import annotations

from typing import Literal, NamedTuple

from briton.config.config import Config
from briton.config.enums import CheckpointSource
from briton.errors import Unsupported

# Which architectures the local executor has a graph for is the builder's to say, once it has read the checkpoint.


# The others come with the TensorRT-LLM builder.
LOCAL_SOURCES = (CheckpointSource.HF, CheckpointSource.LOCAL, CheckpointSource.PYPI)


class ExecutorChoice(NamedTuple):
    """The executor that would run, and why."""

    name: Literal["local"]
    reason: str


def choose_executor(config: Config) -> ExecutorChoice:
    """Resolve `briton.executor`. Raises Unsupported for `trtllm`."""
    if config.briton.executor == "trtllm":
        raise Unsupported(
            "briton.executor is trtllm, and this version of briton has no TensorRT-LLM executor: use auto or local",
            "briton.executor",
        )
    if config.briton.executor == "local":
        return ExecutorChoice("local", "the config asks for it")
    asked = f"; the config asks for {config.accelerator}, which is not used" if config.accelerator else ""
    return ExecutorChoice("local", f"this version of briton has no TensorRT-LLM executor{asked}")


def check_servable(config: Config) -> None:
    """Raise Unsupported, naming the field, for a config that no executor of this version can serve."""
    choose_executor(config)
    if config.is_encoder:
        raise Unsupported(
            f"base_model is {config.trt_llm.build.base_model} ({config.family}): "
            "the local executor serves decoder models only, no embedding, reranking or classification models",
            "trt_llm.build.base_model",
        )
    if config.world_size != config.tensor_parallel_size:
        raise Unsupported(
            f"trt_llm.build asks for {config.world_size} ranks, {config.tensor_parallel_size} of them for tensor "
            "parallelism: the local executor has no pipeline or sequence parallelism",
            "trt_llm.build.pipeline_parallel_count",
        )
    if not config.has_checkpoint:
        raise Unsupported(
            "skip_build_result is set without a checkpoint_repository: the local executor has nothing to build from",
            "trt_llm.build.checkpoint_repository",
        )
    if config.checkpoint.source not in LOCAL_SOURCES:
        raise Unsupported(
            f"checkpoints from {config.checkpoint.source} cannot be fetched by this version: "
            f"use {', '.join(LOCAL_SOURCES[:-1])} or {LOCAL_SOURCES[-1]}",
            "trt_llm.build.checkpoint_repository.source",
        )
