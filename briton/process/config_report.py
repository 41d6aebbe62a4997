"""What `briton config check` prints: in a few lines, what would be built and served, by which executor, and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from briton.config.build import TrussSpeculatorConfiguration
from briton.config.config import Config
from briton.config.enums import CheckpointSource
from briton.config.local_target import map_quantization, step_tokens
from briton.config.trt_llm import TRTLLMConfigurationV2
from briton.errors import Unsupported
from briton.process.executor_choice import check_servable, choose_executor

_LABEL = 12  # columns
_UNUSED_BUILD_FIELDS = ("num_builder_gpus", "plugin_configuration", "quantization_config")


def report(config: Config) -> str:
    """The report of a valid config, without a final newline; the second line says so when it cannot be served."""
    lines = [f"{config.path}: valid"]
    lines += [f"  {label:<{_LABEL}}{text}" for label, text in _facts(config)]
    lines += [f"  {'warning':<{_LABEL}}{warning}" for warning in config.warnings]
    return "\n".join(lines)


def _facts(config: Config) -> Iterator[tuple[str, str]]:
    try:
        check_servable(config)
    except Unsupported as error:
        yield "serving", f"not possible with this version: {error.message}"
        yield from _model(config)
    else:
        choice = choose_executor(config)
        yield from _model(config)
        yield "executor", "{}: {}".format(*choice)
        if choice.name == "trtllm":
            yield "plan", f"briton config explain {config.path}"
            return
        yield "needs", "a checkpoint of the Llama family (Llama, Mistral, SmolLM, Falcon3): checked when it is built"
        yield from _engine(config)


def _model(config: Config) -> Iterator[tuple[str, str]]:
    stack = f"{config.trt_llm.inference_stack}, {config.trt_llm.build.base_model}"
    yield "model", f"{config.served_model_name} ({config.family}: {stack})"
    yield "source", _source(config)


def _source(config: Config) -> str:
    if not config.has_checkpoint:
        return "none (skip_build_result)"
    checkpoint = config.checkpoint
    is_missing = checkpoint.source is CheckpointSource.LOCAL and not Path(checkpoint.repo).exists()
    return f"{checkpoint} (not there)" if is_missing else str(checkpoint)


def _engine(config: Config) -> Iterator[tuple[str, str]]:
    if isinstance(config.trt_llm, TRTLLMConfigurationV2):
        yield (
            "v2",
            f"limits are from trt_llm.runtime, chunked prefill is chunked context, policy {config.scheduler_policy}",
        )
    yield "weights", _weights(config)
    yield "kv cache", _kv_cache(config)
    length = f"{config.max_seq_len} tokens" if config.max_seq_len else "the checkpoint's own"
    yield "context", f"{length} for prompt and output"
    chunked = "chunked context" if config.enable_chunked_context else "no chunked context"
    yield (
        "batch",
        f"up to {config.max_batch_size} sequences and {_step_tokens(config)} a step, "
        f"{config.scheduler_policy}, {chunked}",
    )
    if config.tensor_parallel_size > 1:
        yield "ranks", f"{config.tensor_parallel_size} tensor-parallel ranks, started by mpiexec"
    if config.speculator is not None:
        yield "speculator", _speculator(config.speculator)
        if config.speculator.drafts and map_quantization(config).kv_cache == "u8":
            yield (
                "warning",
                "speculator: rejected drafts leave a trace in a u8 KV cache: output is only nearly the same as without",
            )
    briton = config.briton
    if unused := [name for name in _UNUSED_BUILD_FIELDS if name in config.trt_llm.build.model_fields_set]:
        yield "not used", f"{', '.join(unused)}: for TensorRT-LLM builds"
    yield "ports", f"HTTP {briton.host}:{briton.http_port}, gRPC {briton.grpc_host}:{briton.grpc_port}"


def _speculator(speculator: TrussSpeculatorConfiguration) -> str:
    if not speculator.drafts:
        return "lookahead that drafts nothing"
    sizes = speculator.lookahead
    parts = ["dynamic n-grams"] if speculator.enable_b10_lookahead else []
    if sizes.has_window:
        window, ngram, verified = sizes.window_size, sizes.ngram_size, sizes.verification_set_size
        parts.append(f"a window of {window} (n-grams of {ngram}, {verified} verified)")
    return f"lookahead, {' and '.join(parts)}: up to {speculator.num_draft_tokens} draft tokens a sequence"


def _step_tokens(config: Config) -> str:
    tokens = step_tokens(config)
    return f"{tokens} tokens" if tokens == config.max_num_tokens else f"{tokens} (of {config.max_num_tokens}) tokens"


def _weights(config: Config) -> str:
    target = map_quantization(config)
    if target.substitution:
        return target.substitution
    may_be_gguf = config.checkpoint.source is not CheckpointSource.HF
    kept = "; the 4 and 8 bit blocks of a GGUF are kept as they are" if target.carry_over and may_be_gguf else ""
    return f"{config.quantization_type}: {target.attention}{kept}"


def _kv_cache(config: Config) -> str:
    local = config.briton.local
    dtype = map_quantization(config).kv_cache
    if local.kv_cache_tokens is not None:
        return f"{dtype}, {local.kv_cache_tokens} tokens"
    if local.kv_cache_memory_bytes is not None:
        return f"{dtype}, {local.kv_cache_memory_bytes} bytes"
    return f"{dtype}, sized at start from the memory there is"
