"""Proto messages to the types of a request, and back. Decides nothing but defaults: an unset scalar is the model's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from typing import Any

from briton import __version__
from briton.config.lookahead import LookaheadConfig
from briton.engine.types import (
    ExecutorStats,
    FinishReason,
    ModelInfo,
    RequestTimings,
    SamplingParams,
    Speculation,
    TokenLogprob,
)
from briton.errors import InvalidRequest
from briton.guidance.guide import GuideSpec
from briton.v1 import engine_pb2 as pb

_SCALARS = tuple(
    field.name
    for field in fields(SamplingParams)
    if field.name not in ("max_tokens", "logit_bias", "bad_words", "stop_token_ids")
)
_BUILT = ("default_sampling", "default_max_tokens", "stop_token_ids", "lookahead", "lora_adapters")
FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}


def sampling_from_proto(message: pb.SamplingParams, info: ModelInfo, num_prompt: int) -> SamplingParams:
    """The sampling of a request with a prompt of `num_prompt` tokens; ranges are checked later, by the executor."""
    given: dict[str, Any] = {name: getattr(message, name) for name in _SCALARS if message.HasField(name)}
    if message.HasField("max_tokens"):
        given["max_tokens"] = message.max_tokens
    else:
        room = max(1, info.max_seq_len - num_prompt)
        given["max_tokens"] = min(room, info.default_max_tokens or room)
    if message.logit_bias:
        given["logit_bias"] = dict(message.logit_bias)
    if message.bad_words:
        given["bad_words"] = tuple(tuple(word.ids) for word in message.bad_words)
    if message.stop_token_ids:
        given["stop_token_ids"] = tuple(message.stop_token_ids)
    return replace(info.default_sampling, **given)


def guide_from_proto(message: pb.Guide) -> GuideSpec | None:
    """What the guide asks for; None for an empty one. Raises InvalidRequest for a choice of nothing."""
    kind = message.WhichOneof("kind")
    if kind == "json_schema":
        return GuideSpec("json_schema", message.json_schema)
    if kind == "json_object":
        return GuideSpec("json_object") if message.json_object else None
    if kind == "regex":
        return GuideSpec("regex", message.regex)
    if kind == "choice":
        if not message.choice.choices:
            raise InvalidRequest("guide.choice.choices must have at least 1 entry", "guide.choice.choices")
        return GuideSpec("choice", choices=tuple(message.choice.choices))
    return None


def lookahead_from_proto(message: pb.LookaheadConfig) -> LookaheadConfig:
    """The sizes as they are; limits are checked later, by the executor."""
    return LookaheadConfig(message.window_size, message.ngram_size, message.verification_set_size)


def logprobs_to_proto(logprobs: Iterable[TokenLogprob]) -> list[pb.TokenLogprob]:
    """One message for each position."""
    return [
        pb.TokenLogprob(
            token_id=entry.token_id,
            logprob=entry.logprob,
            top=[pb.TopLogprob(token_id=token_id, logprob=logprob) for token_id, logprob in entry.top],
        )
        for entry in logprobs
    ]


def usage_to_proto(
    prompt_tokens: int,
    completion_tokens: int,
    cached_tokens: int,
    timings: RequestTimings | None,
    speculation: Speculation | None,
) -> pb.Usage:
    """The end of a call. `speculation` is None where the engine does not speculate."""
    timings = timings or RequestTimings()
    return pb.Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cached_tokens=cached_tokens,
        queue_s=timings.queue_s,
        prefill_s=timings.prefill_s,
        decode_s=timings.decode_s,
        speculation=None if speculation is None else pb.Speculation(**asdict(speculation)),
    )


def sampling_to_proto(sampling: SamplingParams) -> pb.SamplingParams:
    """A model's default sampling, without max_tokens, which has a field of its own."""
    message = pb.SamplingParams(
        logit_bias=sampling.logit_bias,
        bad_words=[pb.TokenIds(ids=word) for word in sampling.bad_words],
        stop_token_ids=sampling.stop_token_ids,
    )
    for name in _SCALARS:
        value = getattr(sampling, name)
        if value is not None:
            setattr(message, name, value)
    return message


def info_to_proto(info: ModelInfo) -> pb.ModelInfo:
    """GetModelInfo's answer."""
    message = pb.ModelInfo(
        default_sampling=sampling_to_proto(info.default_sampling),
        default_max_tokens=info.default_max_tokens or 0,
        stop_token_ids=info.stop_token_ids,
        lora_adapters=info.lora_adapters,
        version=__version__,
        lookahead=None if info.lookahead is None else pb.LookaheadConfig(**asdict(info.lookahead)),
    )
    for field in fields(info):
        if field.name not in _BUILT:
            setattr(message, field.name, getattr(info, field.name))
    return message


def stats_to_proto(stats: ExecutorStats) -> pb.Stats:
    """GetStats' answer: the same names."""
    values = {field.name: getattr(stats, field.name) for field in fields(stats)}
    return pb.Stats(**{**values, "ranks": [pb.RankStats(**asdict(rank)) for rank in stats.ranks]})
