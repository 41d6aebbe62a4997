"""Chat completions: https://platform.openai.com/docs/api-reference/chat."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, WithJsonSchema

from briton.v1.limits import MAX_LOGPROBS
from briton_server.protocol.fields import MAX_UINT32, RequestModel, Text
from briton_server.protocol.generation import GenerationFields
from briton_server.protocol.usage import Usage

MAX_MESSAGES = 2048
MAX_TOOL_CALLS = 128  # of one message

_TEXT: list[dict[str, Any]] = [
    {"type": "string"},
    {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
            "required": ["type", "text"],
        },
    },
]
# Checked by `briton_server.prompts`, whose messages name the part that is wrong.
TextContent = Annotated[Any, WithJsonSchema({"anyOf": _TEXT})]
Content = Annotated[Any, WithJsonSchema({"anyOf": [*_TEXT, {"type": "null"}]})]


class Message(RequestModel):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = None
    name: Text | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOL_CALLS, fail_fast=True)] | None = None
    tool_call_id: Text | None = None


class Prediction(RequestModel):
    """What the answer will largely repeat, such as the file to be edited: it comes sooner where it does, and is the
    same answer either way. Without effect where the server does not speculate."""

    type: Literal["content"]
    content: TextContent


class ChatCompletionRequest(GenerationFields):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_UINT32)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    functions: list[Any] | None = None
    prediction: Prediction | None = None
    modalities: list[Text] | None = None
    """Text, and nothing else."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Variables of the model's chat template, such as `enable_thinking`."""
    sanitize_control_tokens: bool | None = None
    """False: control tokens that messages spell, such as `<|im_end|>`, are control tokens. Default: they are text."""


class TopLogprob(BaseModel):
    """One of the most likely tokens at a position."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A sampled token, and the most likely ones at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log probabilities of exactly the tokens whose text starts in the message or delta beside it."""

    content: list[TokenLogprob]


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One of the n answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """The answer to a request that does not stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
