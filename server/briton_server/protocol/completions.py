"""Legacy completions: https://platform.openai.com/docs/api-reference/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator
from pydantic_core import PydanticCustomError

from briton.validation import MAX_LOGPROBS
from briton_server.protocol.fields import MAX_UINT32
from briton_server.protocol.generation import GenerationFields
from briton_server.protocol.usage import Usage

MAX_PROMPTS = 128

Prompt = str | list[int]


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(token) is int and 0 <= token <= MAX_UINT32 for token in value)


def _prompts(value: Any) -> Sequence[Prompt]:
    """A list of prompts from one or several. By hand: a union would report an error for each of a million token ids."""
    prompts: list[Any] = value if isinstance(value, list) and value and not _is_token_ids(value) else [value]
    if len(prompts) > MAX_PROMPTS and isinstance(prompts[0], str | list):
        raise PydanticCustomError(
            "too_many", "has {count} prompts; the limit is {limit}", {"count": len(prompts), "limit": MAX_PROMPTS}
        )
    kind = type(prompts[0])
    if kind not in (str, list) or not all(type(prompt) is kind and prompt != [] for prompt in prompts):
        raise PydanticCustomError(
            "prompt_type", "must be a string, a list of strings, a list of token ids, or a list of lists of token ids"
        )
    for prompt in prompts:
        if kind is list and not _is_token_ids(prompt):
            raise PydanticCustomError(
                "token_ids", "token ids must be integers from 0 to {limit}", {"limit": MAX_UINT32}
            )
        if kind is str and "\0" in prompt:
            raise PydanticCustomError("nul_byte", "must not contain NUL characters (U+0000)")
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
