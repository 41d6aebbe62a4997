"""The request fields that chat completions and completions have in common."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from briton.v1.limits import MAX_LOGIT_BIAS, MAX_N, MAX_STOP_TOKEN_IDS
from briton_server.protocol.constraints import ConstraintFields
from briton_server.protocol.fields import (
    MAX_UINT32,
    BadWords,
    Penalty,
    Probability,
    RequestModel,
    StopStrings,
    Text,
    UInt32,
)


def _few_entries(value: Any) -> Any:
    """Before each of a million entries gets an error of its own."""
    if isinstance(value, dict) and len(value) > MAX_LOGIT_BIAS:
        counts = {"count": len(value), "limit": MAX_LOGIT_BIAS}
        raise PydanticCustomError("too_many", "has {count} entries; the limit is {limit}", counts)
    return value


class StreamOptions(RequestModel):
    """Options of a streamed answer."""

    include_usage: bool | None = None


class LookaheadDecodingConfig(RequestModel):
    """Sizes of lookahead decoding, none larger than the server's. 1, 1, 0 turns it off."""

    window_size: Annotated[int, Field(ge=1, le=MAX_UINT32)]
    ngram_size: Annotated[int, Field(ge=1, le=MAX_UINT32)]
    verification_set_size: UInt32


class GenerationFields(ConstraintFields):
    """How to generate. The names are OpenAI's and, for what OpenAI lacks, vLLM's. Unset means the model's default.

    Fields that are not known have no effect, and `model_extra` has them.
    """

    model_config = ConfigDict(extra="allow")

    model: Text | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MAX_UINT32)] | None = None
    """At most so many tokens are generated; cut to what the context leaves."""
    min_tokens: UInt32 | None = None
    """The end token is not generated before so many others."""
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_UINT32)] | None = None
    """Sample from the k likeliest tokens. 0 and -1: from all."""
    min_p: Probability | None = None
    """Leave out tokens less likely than this part of the likeliest one's probability."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """Above 1: tokens of the prompt and of the answer become less likely."""
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
            Field(max_length=MAX_LOGIT_BIAS),
            BeforeValidator(_few_entries),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopStrings | None = None
    stop_token_ids: Annotated[list[UInt32], Field(max_length=MAX_STOP_TOKEN_IDS, fail_fast=True)] | None = None
    """Tokens that end the answer, besides the model's own."""
    bad_words: BadWords | None = None
    """Strings whose tokens are not generated."""
    ignore_eos: bool | None = None
    """Go on after the model's end token, up to max_tokens."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=2**31 - 1)] | None = None
    """Higher is admitted first. Default: 0."""
    user: Text | None = None
    """Whom the request is for: users are served equally, however many requests each has open."""
    cache_salt: Annotated[Text, Field(max_length=256)] | None = None  # the engine's limit
    """Cached prompt tokens are shared only between requests of equal salt."""
    lookahead_decoding_config: LookaheadDecodingConfig | None = None
    """How far to guess ahead, where the server speculates: changes how soon tokens come, not which."""
