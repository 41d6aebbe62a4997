"""What `briton config explain` and `briton build --dry-run` print: the plan of a config, before anything is built.

    {executor, build, quantization, calibration, executor_config, launch, memory, notes}

for either executor, with `serving` beside them: what Briton itself does with requests. Bytes are bytes; `build` and
`executor_config` have the names of the library that is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from briton.config.config import Config
from briton.config.enums import ExecutorName
from briton.config.environment import Environment
from briton.config.local_target import map_quantization
from briton.errors import ConfigError, Unsupported
from briton.local.memory import available_memory_bytes, num_kv_blocks
from briton.local.settings import BLOCK_SIZE
from briton.model.shapes import ModelShapes
from briton.model.sharding import Shard, shard_model
from briton.process.executor_choice import check_servable, check_sources, choose_executor, is_local_only
from briton.process.executors import local_settings
from briton.ranks.mpiexec import Mpiexec
from briton.trtllm.library_objects import plain
from briton.trtllm.machine import LIBRARY, LIBRARY_VERSION, this_machine
from briton.trtllm.memory import in_gib
from briton.trtllm.plan import TrtllmPlan, gpu_of, plan_of
from briton_engine_builder.hf_config import SUPPORTED_ARCHITECTURES
from briton_engine_builder.sources.shapes import find_shapes

# Bytes of one weight as the local engine stores it: int4 has a scale and a zero point for 32 weights.
_LOCAL_WEIGHT_BYTES = {"f32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.5 + 3 / 32}
_LOCAL_ONLY = (
    "TensorRT-LLM does not build from GGUF files or PyPI packages: the plan is that of the same model in safetensors"
)
_NOT_RUN = (
    f"not yet run on a GPU: the plan is checked against the names of {LIBRARY}'s 1.2 series, and its memory is counted"
)


@dataclass(frozen=True, slots=True)
class Explanation:
    """A plan: what is printed as JSON, and a few lines on top of it for people."""

    summary: tuple[tuple[str, str], ...]  # label, text
    document: Mapping[str, Any]

    def text(self) -> str:
        """The summary, then the document as YAML."""
        lines = [f"{label:<12}{text}" for label, text in self.summary]
        body = yaml.safe_dump(dict(self.document), sort_keys=False, width=120, allow_unicode=True)
        return "\n".join(lines) + "\n\n" + body.rstrip("\n")


def explain(
    config: Config,
    environment: Environment,
    *,
    executor: ExecutorName | None = None,
    offline: bool = False,
    model_config: Path | None = None,
) -> Explanation:
    """The plan of a config for an executor, `trtllm` or `local` (None: the one that would run here); where the model's
    shapes come from is `find_shapes`' to say.

    Raises ConfigError, in one line, for a config that cannot be built or run, or does not fit; BuildError where the
    model's shapes cannot be fetched.
    """
    chosen, reason = resolve_executor(config, executor)
    if config.is_encoder:
        raise ConfigError(
            f"trt_llm.build.base_model is {config.trt_llm.build.base_model} ({config.family}): only decoder models are "
            "served, no embedding, reranking or classification models",
            "trt_llm.build.base_model",
        )
    _check(config, chosen)  # before anything is fetched
    shapes = find_shapes(config, environment, offline=offline, model_config=model_config)
    return explain_shapes(config, shapes, chosen, reason)


def resolve_executor(config: Config, asked: ExecutorName | None) -> tuple[ExecutorName, str]:
    """(executor, why) of a plan: the asked one, the config's even where it cannot run, or what `auto` takes here."""
    if asked is not None:
        return asked, "asked for on the command line"
    if config.briton.executor == "trtllm":
        missing = ", and ".join(this_machine().missing)
        return "trtllm", "the config asks for it" + (f"; it cannot run here: {missing}" if missing else "")
    return choose_executor(config)


def explain_shapes(config: Config, shapes: ModelShapes, executor: ExecutorName, reason: str) -> Explanation:
    """The plan of a config whose model has these shapes. Raises ConfigError, in one line, for one that cannot be."""
    _check(config, executor)
    if executor == "trtllm":
        return _explain_trtllm(config, shapes, reason)
    return _explain_local(config, shapes, reason)


def _check(config: Config, executor: ExecutorName) -> None:
    try:
        if executor == "local":
            check_servable(config, executor)
        else:  # what TensorRT-LLM cannot build from is planned all the same, and a note says so
            check_sources(config)
    except Unsupported as error:
        raise ConfigError(error.message, error.field) from None


def _explain_trtllm(config: Config, shapes: ModelShapes, reason: str) -> Explanation:
    plan = plan_of(config, shapes, gpu_of(config))
    build, quantization = plan.build, plan.quantization
    memory = asdict(plan.memory)
    memory["decode_tokens_per_second"] = asdict(plan.decode) if plan.decode else None
    document = {
        "executor": "trtllm",
        "build": {
            **plain(build.build_config),
            "library": f"{LIBRARY}=={LIBRARY_VERSION}",
            "checkpoint": dict(build.checkpoint),
            "llm": dict(build.llm_arguments),
            "speculative_config": plain(build.speculative_config),
            "builder_gpus": build.builder_gpus,
            "gpu": build.gpu,
            "lora_adapters": [asdict(adapter) for adapter in build.lora_adapters],
        },
        "quantization": {
            "quantization_type": quantization.quantization_type,
            "quant_algo": quantization.quant_algo,
            "kv_cache_quant_algo": quantization.kv_cache_quant_algo,
            "exclude_modules": list(quantization.exclude_modules) or None,
            "is_prequantized": quantization.is_prequantized,
            "model_optimizer_recipe": quantization.model_optimizer_recipe,
        },
        "calibration": plan.calibration
        and {**plain(plan.calibration.calib_config), "fetch_dataset": plan.calibration.fetch_dataset},
        "executor_config": plain(plan.executor_config),
        "launch": {"command": list(plan.launch.command), "env": dict(plan.launch.env)},
        "memory": memory,
        "serving": asdict(plan.serving),
        "notes": [*plan.notes, *([_LOCAL_ONLY] if is_local_only(config) else []), _NOT_RUN],
    }
    return Explanation((("executor", f"trtllm: {reason}"), *_trtllm_summary(config, plan)), document)


def _trtllm_summary(config: Config, plan: TrtllmPlan) -> list[tuple[str, str]]:
    memory, quantization = plan.memory, plan.quantization
    weights = quantization.quant_algo or plan.shapes.dtype
    cache = quantization.kv_cache_quant_algo or plan.shapes.dtype
    summary = [
        ("model", f"{config.served_model_name}: {_size(plan.shapes)}"),
        ("weights", f"{weights}, KV cache {cache}: {in_gib(memory.weights_bytes_per_rank)} on each rank"),
    ]
    if memory.gpu is not None and memory.gpu_memory_bytes is not None:
        ranks = plan.build.parallelism.world_size
        summary.append(
            (
                "fits",
                f"{ranks} x {memory.gpu} ({in_gib(memory.gpu_memory_bytes)} each): room for "
                f"{memory.max_tokens_in_kv_cache} tokens, {memory.full_length_requests} requests of "
                f"{plan.features.max_seq_len} tokens at the same time",
            )
        )
    if plan.decode is not None:
        summary.append(
            (
                "decode",
                f"{plan.decode.batch_1:.0f} tokens/s for one request, {plan.decode.full_batch:.0f} for "
                f"{plan.decode.batch_size} (an estimate: memory bandwidth alone, {plan.decode.context_tokens} tokens "
                "of context)",
            )
        )
    return summary


def _explain_local(config: Config, shapes: ModelShapes, reason: str) -> Explanation:
    if shapes.architecture not in SUPPORTED_ARCHITECTURES:
        raise ConfigError(
            f"architecture {shapes.architecture} is not supported by the local executor, which runs "
            f"{' and '.join(SUPPORTED_ARCHITECTURES)}; --executor trtllm plans it for TensorRT-LLM",
            "trt_llm.build.checkpoint_repository.repo",
        )
    shards = shard_model(shapes, config.tensor_parallel_size)
    target, settings = map_quantization(config), local_settings(config)
    max_seq_len = config.max_seq_len or shapes.max_position_embeddings
    on_ranks = [_local_weights(shapes, shard, target.attention, target.mlp) for shard in shards]
    weights, num_heads = sum(on_ranks), sum(shard.key_value_heads.size for shard in shards)
    per_token = _local_kv(shapes, num_heads, target.kv_cache)
    most_heads = max(shard.key_value_heads.size for shard in shards)
    available = available_memory_bytes()
    tokens = num_kv_blocks(settings, max_seq_len, per_token * BLOCK_SIZE) * BLOCK_SIZE
    taken = weights + tokens * per_token
    if taken > available:
        raise ConfigError(
            f"the model does not fit in memory: weights take {in_gib(weights)}, the KV cache "
            f"{in_gib(tokens * per_token)}, and {in_gib(available)} are available: lower "
            "briton.local.kv_cache_tokens, or choose a smaller quantization_type",
            "briton.local.kv_cache_tokens",
        )
    checkpoint = config.checkpoint
    stored = target.mlp if target.attention == target.mlp else f"{target.mlp}/{target.attention}"
    document = {
        "executor": "local",
        "build": {
            "checkpoint": {
                "source": checkpoint.source.value,
                "repo": checkpoint.repo,
                "revision": checkpoint.revision,
            },
            "attention": target.attention,
            "mlp": target.mlp,
            "keeps_gguf_blocks": target.carry_over,
            "tensor_parallel_size": config.tensor_parallel_size,
        },
        "quantization": {
            "quantization_type": config.quantization_type.value,
            "weights": stored,
            "kv_cache": target.kv_cache,
        },
        "calibration": None,
        "executor_config": asdict(settings),
        "launch": {"command": _local_command(config), "env": {}},
        "memory": {
            "weights_bytes_per_rank": max(on_ranks),
            "kv_bytes_per_token": per_token,
            "kv_cache_bytes_per_rank": tokens * _local_kv(shapes, most_heads, target.kv_cache),
            "max_tokens_in_kv_cache": tokens,
            "full_length_requests": tokens // max_seq_len,
            "available_memory_bytes": available,
            "fits": True,
        },
        "serving": {
            "served_model_name": config.served_model_name,
            "request_default_max_tokens": config.default_max_tokens,
            "total_token_limit": config.total_token_limit,
        },
        "notes": _local_notes(config, target.substitution, target.carry_over),
    }
    summary = (
        ("executor", f"local: {reason}"),
        ("model", f"{config.served_model_name}: {_size(shapes)}"),
        ("weights", f"{stored}, KV cache {target.kv_cache}: {in_gib(weights)}"),
        (
            "fits",
            f"room for {tokens} tokens, {tokens // max_seq_len} requests of {max_seq_len} tokens at the same time",
        ),
    )
    return Explanation(summary, document)


def _local_notes(config: Config, substitution: str | None, keeps_blocks: bool) -> list[str]:
    notes = [substitution] if substitution else []
    if keeps_blocks:
        notes.append("the 4 and 8 bit blocks of a GGUF checkpoint are kept, and take less than counted here")
    return [*notes, *config.warnings]


def _local_command(config: Config) -> list[str]:
    """As a user would type it, with the mpiexec that starts several ranks in front."""
    program = ["python", "-m", "briton", "engine", "--config", str(config.path)]
    if config.tensor_parallel_size == 1:
        return program
    command = Mpiexec("mpiexec", "hydra").command(
        program, config.tensor_parallel_size, hostfile=config.mpi_hostfile, arguments=config.briton.mpi.arguments
    )
    return list(command)


def _local_weights(shapes: ModelShapes, shard: Shard, attention: str, mlp: str) -> int:
    """Bytes of one rank's matrices; embedding and lm_head are stored as attention is, a tied one once."""
    hidden, layers = shapes.hidden_size, shapes.num_hidden_layers
    tables = shard.vocab.size * hidden * (1 if shapes.tie_word_embeddings else 2)
    in_attention = layers * 2 * hidden * shapes.head_dim * (shard.heads.size + shard.key_value_heads.size) + tables
    in_mlp = layers * 3 * hidden * shard.intermediate.size
    return int(in_attention * _LOCAL_WEIGHT_BYTES[attention] + in_mlp * _LOCAL_WEIGHT_BYTES[mlp])


def _local_kv(shapes: ModelShapes, num_heads: int, dtype: str) -> int:
    """Bytes of one token's keys and values in so many heads. A u8 block of 32 tokens has 8 rows more of keys, 8 columns
    of values."""
    heads = shapes.num_hidden_layers * num_heads
    if dtype == "u8":
        return heads * (shapes.head_dim * 40 // 32 + shapes.head_dim + 8)
    return heads * 2 * shapes.head_dim * int(_LOCAL_WEIGHT_BYTES[dtype])


def _size(shapes: ModelShapes) -> str:
    experts = f", {shapes.num_experts_per_tok} of {shapes.num_experts} experts" if shapes.num_experts else ""
    return f"{shapes.architecture}, {shapes.num_parameters / 1e9:.2f} billion parameters{experts}"
