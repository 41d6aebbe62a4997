"""The checks every executor makes before it accepts a request. Each names the field and the limit."""

from __future__ import annotations

import math
from dataclasses import replace

from briton.config.lookahead import LookaheadConfig
from briton.engine.types import GenerationRequest, ModelInfo, SamplingParams
from briton.errors import InvalidRequest
from briton.v1.lengths import check_prediction_length, check_prompt_length
from briton.v1.limits import (
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    MAX_LOGIT_BIAS,
    MAX_LOGPROBS,
    MAX_N,
    MAX_STOP_TOKEN_IDS,
)


def check_request(request: GenerationRequest, info: ModelInfo) -> GenerationRequest:
    """Return the request with max_tokens cut to what the context leaves; raise InvalidRequest for whatever can never
    run."""
    check_sampling(request.sampling, info)
    num_prompt = len(request.prompt_token_ids)
    check_prompt_length(num_prompt, info.max_seq_len)
    _check_ids("prompt", request.prompt_token_ids, info.vocab_size)
    if request.lookahead is not None:
        check_lookahead(request.lookahead, info)
    if request.lora is not None and request.lora not in info.lora_adapters:
        raise InvalidRequest(f"there is no LoRA adapter {request.lora!r}", "model")
    check_prediction_length(len(request.prediction_token_ids), info.max_seq_len)
    _check_ids("prediction", request.prediction_token_ids, info.vocab_size)
    room = info.max_seq_len - num_prompt
    if request.sampling.max_tokens <= room:
        return request
    cut = replace(request.sampling, max_tokens=room, min_tokens=min(request.sampling.min_tokens, room))
    return replace(request, sampling=cut)


def check_lookahead(lookahead: LookaheadConfig, info: ModelInfo) -> None:
    """Raise InvalidRequest for sizes that are larger than the engine's, or none. (1, 1, 0), off, is always fine."""
    if lookahead.is_off:
        return
    if info.lookahead is None:
        raise InvalidRequest(
            "lookahead is not available: this engine does not speculate, and takes (1, 1, 0) only, which turns it off",
            "lookahead",
        )
    for name, low in (("window_size", 1), ("ngram_size", 1), ("verification_set_size", 0)):
        _in_range(f"lookahead.{name}", getattr(lookahead, name), low, getattr(info.lookahead, name))


def check_sampling(sampling: SamplingParams, info: ModelInfo) -> None:
    """Raise InvalidRequest naming the first field outside its range."""
    s = sampling
    _in_range("max_tokens", s.max_tokens, 1, None)
    _in_range("min_tokens", s.min_tokens, 0, s.max_tokens)
    _in_range("n", s.n, 1, min(MAX_N, info.max_batch_size))
    _in_range("temperature", s.temperature, 0, 100)
    _in_range("top_k", s.top_k, 0, None)
    _in_range("top_p", s.top_p, 0, 1)
    _in_range("min_p", s.min_p, 0, 1)
    _in_range("repetition_penalty", s.repetition_penalty, 0.01, 100)
    _in_range("presence_penalty", s.presence_penalty, -2, 2)
    _in_range("frequency_penalty", s.frequency_penalty, -2, 2)
    if s.seed is not None:
        _in_range("seed", s.seed, -(2**63), 2**64 - 1)
    if s.logprobs is not None:
        _in_range("logprobs", s.logprobs, 0, MAX_LOGPROBS)
    _at_most("stop_token_ids", len(s.stop_token_ids), MAX_STOP_TOKEN_IDS)
    _at_most("bad_words", len(s.bad_words), MAX_BAD_WORDS)
    if (num_tokens := sum(map(len, s.bad_words))) > MAX_BAD_WORD_TOKENS:
        raise InvalidRequest(f"bad_words have {num_tokens} tokens; the limit is {MAX_BAD_WORD_TOKENS}", "bad_words")
    _at_most("logit_bias", len(s.logit_bias), MAX_LOGIT_BIAS)
    _check_ids("stop_token_ids", s.stop_token_ids, info.vocab_size)
    _check_ids("logit_bias", tuple(s.logit_bias), info.vocab_size)
    for token_id, bias in s.logit_bias.items():
        _in_range(f"logit_bias[{token_id}]", bias, -100, 100)
    for i, word in enumerate(s.bad_words):
        if not word:
            raise InvalidRequest(f"bad_words[{i}] must have at least 1 token", "bad_words")
        _check_ids(f"bad_words[{i}]", word, info.vocab_size)


def _in_range(field: str, value: float, low: float, high: float | None) -> None:
    # no float arithmetic, and so no overflow, on integers of any size; NaN fails every comparison
    if not low <= value < math.inf or (high is not None and value > high):
        limit = f"at least {low}" if high is None else f"between {low} and {high}"
        raise InvalidRequest(f"{field} must be {limit}, not {value}", field)


def _at_most(field: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidRequest(f"{field} has {count} entries; the limit is {limit}", field)


def _check_ids(field: str, token_ids: tuple[int, ...], vocab_size: int) -> None:
    if token_ids and not (min(token_ids) >= 0 and max(token_ids) < vocab_size):
        bad = next(t for t in token_ids if not 0 <= t < vocab_size)
        raise InvalidRequest(f"{field} holds token id {bad}, outside the vocabulary of {vocab_size}", field)
