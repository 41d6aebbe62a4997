"""Legacy completions: https://platform.openai.com/docs/api-reference/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator
from pydantic_core import PydanticCustomError

from briton.v1.limits import MAX_LOGPROBS
from briton_server.protocol.fields import MAX_UINT32, without_nul
from briton_server.protocol.generation import GenerationFields
from briton_server.protocol.usage import Usage

MAX_PROMPTS = 128

Prompt = str | list[int]


def _prompts(value: Any) -> Sequence[Prompt]:
    """A list of prompts from one or several. By hand: a union would report an error for each of a million token ids."""
    is_several = isinstance(value, list) and len(value) > 0 and type(value[0]) is not int
    prompts: list[Any] = value if is_several else [value]
    if len(prompts) > MAX_PROMPTS:
        counts = {"count": len(prompts), "limit": MAX_PROMPTS}
        raise PydanticCustomError("too_many", "has {count} prompts; the limit is {limit}", counts)
    kind = type(prompts[0])
    if kind not in (str, list) or any(type(prompt) is not kind for prompt in prompts):
        raise PydanticCustomError(
            "prompt_type", "must be a string, a list of strings, a list of token ids, or a list of lists of token ids"
        )
    for prompt in prompts:
        if len(prompt) == 0:
            raise PydanticCustomError("empty_prompt", "must have at least 1 token")
        if kind is str:
            without_nul(prompt)
        elif not all(type(token_id) is int and 0 <= token_id <= MAX_UINT32 for token_id in prompt):
            limits = {"limit": MAX_UINT32}
            raise PydanticCustomError("token_ids", "must hold token ids, integers from 0 to {limit}", limits)
    return prompts


class CompletionRequest(GenerationFields):
    """The body of POST /v1/completions."""

    prompt: Annotated[
        list[Prompt],
        PlainValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
    ]
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None


class CompletionLogprobs(BaseModel):
    """Log probabilities as parallel lists, one entry a token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]  # characters, in the choice's whole text


class CompletionChoice(BaseModel):
    """One of the n texts of one of the prompts: index = prompt * n + sequence."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """The answer to a request that does not stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
