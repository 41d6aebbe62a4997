"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from briton.errors import InvalidRequest, Unsupported
from briton_server.answer import AnswerKind, respond
from briton_server.frames import ChatFrames
from briton_server.gateway import Gateway
from briton_server.generation import Generation
from briton_server.generation_request import new_generation, receive
from briton_server.logprobs import chat_logprobs
from briton_server.openapi import ERRORS, STREAM, reads
from briton_server.protocol.chat import ChatCompletion, ChatCompletionRequest

router = APIRouter(tags=["chat"])


def _message(text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text, "refusal": None}}


_CHAT = AnswerKind("chatcmpl", "chat.completion", ChatFrames, _message, chat_logprobs)


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={**STREAM, **ERRORS},
    openapi_extra=reads(ChatCompletionRequest),
    summary="Answer a conversation",
)
async def create_chat_completion(request: Request) -> Response:
    """The next message of a conversation, whole or as server-sent events."""
    fields, model, generation = await receive(request, ChatCompletionRequest, _check, _generation)
    return await respond(
        request,
        fields,
        generation,
        _CHAT,
        model=model,
        with_logprobs=bool(fields.logprobs),
        beginnings=[""] * generation.num_choices,
    )


def _generation(gateway: Gateway, fields: ChatCompletionRequest, model: str, request_id: str) -> Generation:
    """What the engine is asked."""
    prompts, max_seq_len = gateway.prompts, gateway.readiness.require().max_seq_len
    prompt = prompts.of_chat(
        fields.messages,
        fields.chat_template_kwargs,
        max_seq_len=max_seq_len,
        sanitize=fields.sanitize_control_tokens is not False,
    )
    prediction = fields.prediction
    return new_generation(
        gateway,
        fields,
        [prompt],
        request_id=request_id,
        model=model,
        prompt_field="messages",
        max_tokens=fields.max_completion_tokens or fields.max_tokens or gateway.settings.default_max_tokens,
        logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
        prediction=prompts.of_prediction(prediction.content, max_seq_len=max_seq_len) if prediction else (),
    )


def _check(fields: ChatCompletionRequest) -> None:
    """What is allowed or refused by several fields together."""
    if fields.tools and fields.tool_choice != "none":
        raise Unsupported("tools: tool calls are not supported", "tools")
    if not fields.tools and fields.tool_choice not in (None, "none", "auto"):
        raise InvalidRequest("tool_choice: there are no tools to choose from", "tool_choice")
    if fields.functions:
        raise Unsupported("functions: function calls are not supported", "functions")
    if any(modality != "text" for modality in fields.modalities or ()):
        raise Unsupported("modalities: only text is supported", "modalities")
    if fields.top_logprobs is not None and not fields.logprobs:
        raise InvalidRequest("top_logprobs: needs logprobs to be true", "top_logprobs")
    given = (fields.max_tokens, fields.max_completion_tokens)
    if None not in given and given[0] != given[1]:
        raise InvalidRequest("max_tokens: only one of max_tokens and max_completion_tokens can be given", "max_tokens")
