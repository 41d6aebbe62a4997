"""Config in, engine directory of target "trtllm" out: the plan, the cache, the child process, the manifest."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from briton import __version__
from briton.config.config import Config
from briton.config.enums import CheckpointSource
from briton.config.environment import Environment
from briton.errors import BuildError, ConfigError
from briton.model.engine_dir import FORMAT_VERSION, EngineManifest, TrtllmBuild
from briton.model.generation_config import GENERATION_CONFIG
from briton.model.shapes import ModelShapes
from briton.trtllm.gpus import Gpu
from briton.trtllm.lora import lora_modules, max_lora_rank
from briton.trtllm.machine import Machine, this_machine
from briton.trtllm.plan import TrtllmPlan, gpu_of, plan_of
from briton.trtllm.quantization import check_gpu
from briton_engine_builder.cache import EngineCache
from briton_engine_builder.cache_files import readable_name
from briton_engine_builder.hashing import sha256_of
from briton_engine_builder.hf_checkpoint import CONFIG, TOKENIZER, copy_tokenizer, read_json, stop_token_ids
from briton_engine_builder.sources.fetch import Fetcher
from briton_engine_builder.sources.fetched import FetchedCheckpoint
from briton_engine_builder.sources.shapes import fetch_shapes
from briton_engine_builder.trtllm.calibration import with_calibration_data
from briton_engine_builder.trtllm.engine_files import SavedEngine, take_engine
from briton_engine_builder.trtllm.job import OUTPUT, BuildJob, job_of
from briton_engine_builder.trtllm.lora import write_adapter
from briton_engine_builder.trtllm.process import child_command, run_child
from briton_engine_builder.trtllm.shapes_index import ShapesIndex

logger = logging.getLogger(__name__)

TARGET = "trtllm"
BUILDER_VERSION = f"{__version__}+2"  # the number after + changes when the same plan gives another engine
_CHILD_DIRECTORY = ".child"  # in the new engine directory, on the same disk, and gone with it
_SHORT_DTYPES = {"bfloat16": "bf16", "float16": "f16"}


@dataclass(frozen=True, slots=True)
class PlannedEngine:
    """An engine that may be in the cache: all that its key depends on."""

    fetched: FetchedCheckpoint
    adapters: Mapping[str, FetchedCheckpoint]
    plan: TrtllmPlan
    job: BuildJob
    key: str


def find_trtllm_engine(config: Config, environment: Environment, machine: Machine | None = None) -> Path | None:
    """The engine directory that `build_trtllm_engine` would return at once, without network and without the library."""
    cache_dir = config.cache_dir(environment)
    fetched = Fetcher(config, environment, cache_dir).remembered()
    if fetched is None:
        return None
    adapters = dict[str, FetchedCheckpoint]()
    for name, repository in config.lora_adapters.items():
        adapter = Fetcher(config, environment, cache_dir, repository).remembered()
        if adapter is None:
            return None
        adapters[name] = adapter
    planned = _planned(config, fetched, adapters, ShapesIndex(cache_dir), machine or this_machine())
    return None if planned is None else EngineCache(cache_dir).find(planned.key)


def build_trtllm_engine(
    config: Config, environment: Environment, *, progress: bool = True, machine: Machine | None = None
) -> Path:
    """The engine directory of a config for this machine's GPUs: the cached one, or one built now.

    Raises ConfigError for what the plan refuses, before weights are fetched; BuildError where the checkpoint cannot be
    had, or the library's builder fails, of which nothing is left.
    """
    machine = machine or this_machine()
    found = find_trtllm_engine(config, environment, machine)
    if found is not None:
        return found
    cache_dir = config.cache_dir(environment)
    checkpoint, cache, index = config.checkpoint, EngineCache(cache_dir), ShapesIndex(cache_dir)
    if checkpoint.source is CheckpointSource.HF:
        token = environment.hf_token_for(checkpoint.runtime_secret_name)
        with suppress(BuildError):  # what keeps the shapes from being fetched is told again, or a snapshot is there
            _plan(config, fetch_shapes(checkpoint.repo, checkpoint.revision, token=token), machine)
    fetched = Fetcher(config, environment, cache_dir).fetch(progress=progress)
    adapters = {
        name: Fetcher(config, environment, cache_dir, repository).fetch(progress=progress)
        for name, repository in config.lora_adapters.items()
    }
    planned = _planned(config, fetched, adapters, index, machine)
    if planned is None:
        raise BuildError(f"{fetched.path} has no {CONFIG}: TensorRT-LLM builds from directories with safetensors")
    index.remember(fetched, planned.plan.shapes)
    with cache.lock(planned.key):
        found = cache.find(planned.key)  # somebody else may have built it meanwhile
        if found is not None:
            return found
        _warn_of_another_gpu(config, machine)
        started = time.monotonic()
        with cache.new_directory(planned.key) as directory:
            _write_engine(config, environment, planned, directory, progress)
    built = cache.directory / planned.key
    logger.info("built the engine in %.1f s: %s", time.monotonic() - started, built)
    return built


def _plan(config: Config, shapes: ModelShapes, machine: Machine) -> TrtllmPlan:
    """The plan, and whether this machine's GPUs are up to it. Raises ConfigError."""
    plan = plan_of(config, shapes, gpu_of(config))
    ranks, asked = plan.build.parallelism.world_size, config.trt_llm.build.num_builder_gpus
    needed = max(plan.build.builder_gpus, ranks)
    if needed > len(machine.gpus):
        raise ConfigError(
            f"the engine is built on {needed} GPUs ({ranks} ranks{f', num_builder_gpus {asked}' if asked else ''}); "
            f"this machine has {len(machine.gpus)}",
            "trt_llm.build.num_builder_gpus" if needed > ranks else "trt_llm.build.tensor_parallel_count",
        )
    check_gpu(plan.quantization, Gpu(machine.gpus[0], 0, _capability(machine), 0.0))
    return plan


def _warn_of_another_gpu(config: Config, machine: Machine) -> None:
    planned_for = gpu_of(config)
    if planned_for is not None and planned_for.compute_capability != _capability(machine):
        logger.warning(
            "resources.accelerator is %s, of compute capability %s; the engine is built for this machine's %s (%s), "
            "and runs on its kind alone",
            planned_for.name,
            planned_for.capability,
            machine.gpus[0],
            _architecture(machine),
        )


def _capability(machine: Machine) -> tuple[int, int]:
    architecture = _architecture(machine)
    return int(architecture[3:-1]), int(architecture[-1])


def _architecture(machine: Machine) -> str:
    """Of the GPUs, which have to be alike. Raises ConfigError."""
    kinds = set(machine.gpu_architectures)
    if len(kinds) != 1 or "" in kinds:
        told = ", ".join(f"{g} ({a})" for g, a in zip(machine.gpus, machine.gpu_architectures, strict=False))
        raise ConfigError(f"an engine needs GPUs of one architecture; this machine has {told}", "briton.executor")
    return kinds.pop()


def _planned(
    config: Config,
    fetched: FetchedCheckpoint,
    adapters: Mapping[str, FetchedCheckpoint],
    index: ShapesIndex,
    machine: Machine,
) -> PlannedEngine | None:
    shapes = index.look_up(fetched)
    if shapes is None:
        return None
    plan = _plan(config, shapes, machine)
    job = job_of(plan, fetched.path, machine.library_version or "", _architecture(machine))
    content = {
        "identity": fetched.identity,
        "job": job.described(),
        "builder_version": BUILDER_VERSION,
        "format_version": FORMAT_VERSION,
        "target": TARGET,
        "lora_adapters": _identities(adapters),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]
    return PlannedEngine(fetched, adapters, plan, job, f"{readable_name(config.checkpoint.name)}-{TARGET}-{digest}")


def _identities(adapters: Mapping[str, FetchedCheckpoint]) -> dict[str, str]:
    return {name: fetched.identity for name, fetched in adapters.items()}


def _write_engine(
    config: Config, environment: Environment, planned: PlannedEngine, directory: Path, progress: bool
) -> None:
    checkpoint, plan = planned.fetched.path, planned.plan
    copy_tokenizer(checkpoint, directory)  # first, since it may fail, and quickly
    generation = read_json(checkpoint / GENERATION_CONFIG) if (checkpoint / GENERATION_CONFIG).is_file() else None
    stop_ids = stop_token_ids(checkpoint, read_json(checkpoint / CONFIG), generation)
    for name, adapter in planned.adapters.items():  # quick, too
        modules, max_rank = lora_modules(config, plan.shapes), max_lora_rank(config)
        write_adapter(adapter.path, directory, name, plan.shapes, modules, max_rank)
    job = with_calibration_data(planned.job, plan.calibration, environment)
    child_directory = directory / _CHILD_DIRECTORY
    child_directory.mkdir()
    command = child_command(job.save(child_directory), job.world_size, plan.launch)
    run_child(command, child_directory, progress=progress)
    saved = take_engine(child_directory / OUTPUT, directory, plan, job.library_version)
    shutil.rmtree(child_directory)
    if generation:
        (directory / GENERATION_CONFIG).write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    if not stop_ids:
        logger.warning("%s names no end-of-sequence token: only max_tokens and stop strings end a request", checkpoint)
    _manifest(config, planned, saved, stop_ids, directory).save(directory)


def _manifest(
    config: Config, planned: PlannedEngine, saved: SavedEngine, stop_ids: tuple[int, ...], directory: Path
) -> EngineManifest:
    plan, quantization, features = planned.plan, planned.plan.quantization, planned.plan.features
    dtype = _SHORT_DTYPES.get(plan.shapes.dtype, plan.shapes.dtype)
    files: dict[str, dict[str, Any]] = {
        file.relative_to(directory).as_posix(): {"size": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }
    return EngineManifest(
        model_name=config.checkpoint.name,
        model=plan.shapes,
        quantization_type=str(config.quantization_type),
        weights_dtype=(quantization.quant_algo or dtype).lower(),
        kv_cache_dtype=(quantization.kv_cache_quant_algo or dtype).lower(),
        tokenizer_hash=files[TOKENIZER]["sha256"],
        stop_token_ids=stop_ids,
        builder_version=BUILDER_VERSION,
        source=planned.fetched.source,
        target=TARGET,
        trtllm=TrtllmBuild(
            library_version=planned.job.library_version,
            gpu_architecture=planned.job.gpu_architecture,
            vocab_size_padded=saved.vocab_size_padded,
            max_seq_len=features.max_seq_len,
            max_batch_size=features.max_batch_size,
            max_num_tokens=features.max_num_tokens,
            max_draft_len=features.max_draft_len,
            lookahead=features.lookahead,
            paged_context_fmha=features.use_paged_context_fmha,
            pipeline_parallel_size=plan.build.parallelism.pipeline,
            lora_adapters=tuple(planned.adapters),
            job={
                **planned.job.described(),
                "checkpoint_identity": planned.fetched.identity,
                "lora_adapter_identities": _identities(planned.adapters),
            },
        ),
        tensor_parallel_size=plan.build.parallelism.tensor,
        files=files,
    )
