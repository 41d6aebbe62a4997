"""From a GenerationRequest to the library's Request.

What TensorRT-LLM's kernels do otherwise than `SamplingParams` says, and cannot be told not to: presence and frequency
penalties count the prompt's tokens, too, and a logit's bias is added before its penalties.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np

from briton.config.lookahead import LookaheadConfig
from briton.engine.types import GenerationRequest, ModelInfo, SamplingParams
from briton.errors import InvalidRequest, Unsupported
from briton.trtllm.library import Library

MAX_TOP_K = 1024  # of the sampling kernels (TOP_K_MAX), which cut larger ones without a word
_MIN_TEMPERATURE = 1e-5  # what is smaller overflows, and as good as greedy
_OFF = LookaheadConfig(1, 1, 0)
# DecodingMode.Lookahead has neither penalties nor banned words, and samples with top_k 1.
_IGNORED_WITH_LOOKAHEAD = (
    ("repetition_penalty", 1.0),
    ("presence_penalty", 0.0),
    ("frequency_penalty", 0.0),
    ("bad_words", ()),
    ("logprobs", None),
)


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What of a running engine decides how a request is sent."""

    vocab_size_padded: int  # width of the library's logits: a multiple of the tensor parallel size
    enable_chunked_context: bool
    gather_generation_logits: bool
    lora_tasks: Mapping[str, int] = field(default_factory=dict)  # adapter -> the library's id, which has its weights


def stop_ids(request: GenerationRequest, info: ModelInfo) -> frozenset[int]:
    """The tokens that end a sequence of this request. A guide ends with the model's own, whatever was asked."""
    sampling = request.sampling
    ignored = sampling.ignore_eos and request.guide is None
    return frozenset((*(() if ignored else info.stop_token_ids), *sampling.stop_token_ids))


def check_supported(request: GenerationRequest, info: ModelInfo, limits: RequestLimits) -> None:
    """Raise for what is fine by itself, and what the library would refuse later, or drop without a word."""
    sampling, num_prompt = request.sampling, len(request.prompt_token_ids)
    if not limits.enable_chunked_context and num_prompt > info.max_num_tokens:
        raise InvalidRequest(
            f"prompt has {num_prompt} tokens; without chunked context the limit is max_num_tokens = "
            f"{info.max_num_tokens}",
            "prompt",
            "context_length_exceeded",
        )
    if MAX_TOP_K < sampling.top_k < info.vocab_size:
        raise Unsupported(f"top_k must be at most {MAX_TOP_K}, or 0 for off, not {sampling.top_k}", "top_k")
    if sampling.logprobs is not None and not limits.gather_generation_logits:
        raise Unsupported(
            "logprobs need an engine that gathers its logits: set trt_llm.build.gather_all_token_logits", "logprobs"
        )
    if info.lookahead is not None:
        _check_with_lookahead(sampling)
    asked = request.lookahead
    if asked is not None and not asked.is_off and asked.ngram_size == 1:
        raise InvalidRequest("lookahead.ngram_size must be at least 2, or sizes (1, 1, 0)", "lookahead.ngram_size")


def _check_with_lookahead(sampling: SamplingParams) -> None:
    if not is_greedy(sampling):
        raise Unsupported(
            f"temperature must be 0, not {sampling.temperature:g}: TensorRT-LLM decodes greedily on an engine with "
            "lookahead",
            "temperature",
        )
    for name, neutral in _IGNORED_WITH_LOOKAHEAD:
        if getattr(sampling, name) != neutral:
            raise Unsupported(f"{name} has no effect in TensorRT-LLM on an engine with lookahead", name)


def is_greedy(sampling: SamplingParams) -> bool:
    """Whether the most likely token is taken."""
    return sampling.temperature == 0 or sampling.top_k == 1 or sampling.top_p == 0


def translate(
    library: Library,
    request: GenerationRequest,
    info: ModelInfo,
    limits: RequestLimits,
    stops: Collection[int],
    constrained: bool,
) -> Any:
    """The library's Request. `constrained`: the logits processor is to see it, which lookahead does not go with."""
    trtllm = library.trtllm
    sampling = request.sampling
    wants_logits = sampling.logprobs is not None
    options: dict[str, Any] = {
        "streaming": request.stream,
        "sampling_config": _sampling_config(trtllm, sampling),
        "output_config": trtllm.OutputConfig(
            return_generation_logits=wants_logits,
            exclude_input_from_output=True,
            return_perf_metrics=True,
        ),
        "client_id": request.request_id,
        "priority": _priority(request.priority),
    }
    if stops:
        # Not end_id: there can be but one, and neither it nor its log probability is given out.
        options["stop_words"] = [[token_id] for token_id in sorted(stops)]
    if sampling.bad_words:
        options["bad_words"] = [list(word) for word in sampling.bad_words]
    if sampling.logit_bias:
        options["embedding_bias"] = library.tensor(_bias(sampling, limits.vocab_size_padded))
    if request.cache_salt:
        options["cache_salt_id"] = _salt_id(request.cache_salt)
    if constrained:
        options["logits_post_processor_name"] = trtllm.Request.BATCHED_POST_PROCESSOR_NAME
    if info.lookahead is not None:
        sizes = _OFF if constrained else request.lookahead or info.lookahead
        options["lookahead_config"] = lookahead_config(trtllm, sizes)
    if request.lora is not None:
        options["lora_config"] = trtllm.LoraConfig(limits.lora_tasks[request.lora])
    if request.timeout_s is not None:
        options["allotted_time_ms"] = timedelta(milliseconds=max(1, round(request.timeout_s * 1000)))
    return trtllm.Request(list(request.prompt_token_ids), sampling.max_tokens, **options)


def lookahead_config(trtllm: Any, sizes: LookaheadConfig) -> Any:
    """The library's name for the sizes."""
    return trtllm.LookaheadDecodingConfig(sizes.window_size, sizes.ngram_size, sizes.verification_set_size)


def _sampling_config(trtllm: Any, sampling: SamplingParams) -> Any:
    """Every field that decides something is given: the library's own defaults mean greedy, and seed 0."""
    options: dict[str, Any] = {"num_return_sequences": sampling.n}
    options["seed"] = (secrets.randbits(64) if sampling.seed is None else sampling.seed) % 2**64
    if is_greedy(sampling):
        options["top_k"] = 1
    else:
        options["temperature"] = max(_MIN_TEMPERATURE, float(sampling.temperature))
        options["top_k"] = sampling.top_k if sampling.top_k <= MAX_TOP_K else 0  # 0: off, and so is the vocabulary
        options["top_p"] = float(sampling.top_p)
        if sampling.min_p > 0:
            options["min_p"] = float(sampling.min_p)
    if sampling.repetition_penalty != 1:
        options["repetition_penalty"] = float(sampling.repetition_penalty)
    scale = options.get("temperature", 1.0)  # the library subtracts penalties from logits that it has divided by it
    if sampling.presence_penalty:
        options["presence_penalty"] = sampling.presence_penalty / scale
    if sampling.frequency_penalty:
        options["frequency_penalty"] = sampling.frequency_penalty / scale
    return trtllm.SamplingConfig(**options)


def _bias(sampling: SamplingParams, vocab_size_padded: int) -> Any:
    """float32 [vocab_size_padded]: the library takes no other width, and converts no other type."""
    bias = np.zeros(vocab_size_padded, np.float32)
    bias[list(sampling.logit_bias)] = np.fromiter(sampling.logit_bias.values(), np.float32)
    return bias


def _priority(priority: int) -> float:
    """The same order within the library's range, 0 to 1 with 0.5 in the middle; a float32 tells some thousands
    apart."""
    return 0.5 + 0.5 * priority / (1 + abs(priority))


def _salt_id(salt: str) -> int:
    """63 bits that another salt hardly has."""
    return int.from_bytes(hashlib.sha256(salt.encode()).digest()[:8], "big") >> 1
