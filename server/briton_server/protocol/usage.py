"""Token counts and times at the end of an answer."""

from __future__ import annotations

from pydantic import BaseModel


class PromptTokensDetails(BaseModel):
    """Where the prompt's tokens came from."""

    cached_tokens: int  # found in the KV cache


class CompletionTokensDetails(BaseModel):
    """Tokens guessed ahead, from `prediction` or from the text itself; absent where the server does not speculate."""

    accepted_prediction_tokens: int  # part of the answer, but for what a stop string cut off
    rejected_prediction_tokens: int  # computed, and not part of it: unlike OpenAI's, not in completion_tokens either


class Timings(BaseModel):
    """Where a request's time went, in seconds. An extension: OpenAI's API has no such thing."""

    queue_s: float
    prefill_s: float
    decode_s: float


class Usage(BaseModel):
    """Token counts of an answer, whatever ended it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails | None = None
    tokens_per_step: float | None = None  # that a choice got in one step, on average. An extension, as timings are
    timings: Timings
