"""Which executor serves a config, and what it cannot serve."""

from __future__ import annotations

from typing import NamedTuple

from briton.config.checkpoint import CheckpointRepository
from briton.config.config import Config
from briton.config.enums import CheckpointSource, ExecutorName
from briton.config.local_target import LocalTarget, map_quantization
from briton.errors import Unsupported
from briton.trtllm.machine import Machine, this_machine

# Which architectures the local executor has a graph for is the builder's to say, once it has read the checkpoint.


# All but BASETEN_TRAINING: the runs of a hosted product, which has no public way to them.
LOCAL_SOURCES = tuple(source for source in CheckpointSource if source is not CheckpointSource.BASETEN_TRAINING)
# Whose `revision` names something. Objects have versions one by one, a URL has none.
REVISION_SOURCES = (CheckpointSource.HF, CheckpointSource.PYPI)


class ExecutorChoice(NamedTuple):
    """The executor that would run, and why."""

    name: ExecutorName
    reason: str


def choose_executor(config: Config, machine: Machine | None = None) -> ExecutorChoice:
    """Resolve `briton.executor` for `machine`, which is this one unless given.

    `auto` takes TensorRT-LLM where its library and a GPU are and it can build from the checkpoint, else the local
    executor. Raises Unsupported, saying what is missing, for `trtllm` where they are not.
    """
    if config.briton.executor == "local":
        return ExecutorChoice("local", "the config asks for it")
    machine = this_machine() if machine is None else machine
    missing = ", and ".join(machine.missing)
    if config.briton.executor == "trtllm":
        if missing:
            raise Unsupported(
                f"briton.executor is trtllm, which cannot run here: {missing}; use auto or local", "briton.executor"
            )
        return ExecutorChoice("trtllm", "the config asks for it")
    if not missing and is_local_only(config):
        return ExecutorChoice("local", "TensorRT-LLM does not build from GGUF files or PyPI packages")
    if not missing:
        gpus = f"{len(machine.gpus)} x {machine.gpus[0]}"
        return ExecutorChoice("trtllm", f"tensorrt_llm {machine.library_version} and a GPU are here ({gpus})")
    asked = f"; the config asks for {config.accelerator}, which is not used" if config.accelerator else ""
    return ExecutorChoice("local", f"{missing}{asked}")


def is_local_only(config: Config) -> bool:
    """Whether only the local executor's builder reads the checkpoint."""
    if not config.has_checkpoint:
        return False
    checkpoint = config.checkpoint
    is_gguf = checkpoint.source is CheckpointSource.LOCAL and checkpoint.repo.endswith(".gguf")
    return is_gguf or checkpoint.source is CheckpointSource.PYPI


def check_servable(config: Config, executor: ExecutorName | None = None) -> None:
    """Raise Unsupported, naming the field, for a config that an executor (None: the one of its choice) cannot serve."""
    if (executor or choose_executor(config).name) == "trtllm":
        _check_trtllm_servable(config)
        return
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
    _check_source(config.checkpoint)  # adapters are not fetched


def _check_trtllm_servable(config: Config) -> None:
    """What the plan says of a model comes on top of this, once its shapes are known."""
    build = config.trt_llm.build
    if config.is_encoder:
        raise Unsupported(
            f"base_model is {build.base_model} ({config.family}): only decoder models are served, no embedding, "
            "reranking or classification models",
            "trt_llm.build.base_model",
        )
    if not config.has_checkpoint:
        raise Unsupported(
            "skip_build_result is set without a checkpoint_repository: there is nothing to build an engine from",
            "trt_llm.build.checkpoint_repository",
        )
    if is_local_only(config):
        raise Unsupported(
            f"checkpoint {config.checkpoint.repo}: TensorRT-LLM does not build from GGUF files or PyPI packages; "
            "use executor local",
            "trt_llm.build.checkpoint_repository",
        )
    check_sources(config)


def check_sources(config: Config) -> None:
    """Raise Unsupported, naming the field, where the checkpoint or a LoRA adapter is somewhere that cannot be read."""
    if config.has_checkpoint:
        _check_source(config.checkpoint)
    for name, adapter in config.lora_adapters.items():
        field = f"trt_llm.build.lora_adapters.{name}"
        if adapter.source is CheckpointSource.PYPI:
            raise Unsupported(f"LoRA adapter {name}: TensorRT-LLM does not build from PyPI packages", f"{field}.source")
        _check_source(adapter, field)


def _check_source(checkpoint: CheckpointRepository, field: str = "trt_llm.build.checkpoint_repository") -> None:
    if checkpoint.source not in LOCAL_SOURCES:
        raise Unsupported(
            f"checkpoints from {checkpoint.source} are runs of the hosted product's training, which only it can read: "
            "download the run's checkpoint and use LOCAL, or put it into S3, GCS, AZURE or a tar.gz for REMOTE_URL",
            f"{field}.source",
        )
    if checkpoint.revision is not None and checkpoint.source not in REVISION_SOURCES:
        raise Unsupported(
            f"{field.removeprefix('trt_llm.build.')}.revision is {checkpoint.revision!r}: checkpoints from "
            f"{checkpoint.source} have no revisions, put another one at another path",
            f"{field}.revision",
        )


def local_target(config: Config) -> LocalTarget:
    """`map_quantization` of a config that can be served here. Raises Unsupported, naming the field, for any other."""
    check_servable(config)
    return map_quantization(config)
