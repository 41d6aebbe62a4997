"""POST /v1/chat/completions."""

from __future__ import annotations

import time
from typing import Any
from uuid import uuid4

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from briton.errors import InvalidRequest, Unsupported
from briton_server.answer import Choice, respond_streaming, respond_whole, stream_events
from briton_server.body import read_request
from briton_server.frames import ChatFrames
from briton_server.gateway import gateway_of
from briton_server.generation_request import new_generation
from briton_server.logprobs import chat_logprobs
from briton_server.middleware import request_id_of
from briton_server.protocol.chat import ChatCompletion, ChatCompletionRequest

router = APIRouter(tags=["chat"])


@router.post("/v1/chat/completions", response_model=ChatCompletion, summary="Answer a conversation")
async def create_chat_completion(request: Request) -> Response:
    """The next message of a conversation, whole or as server-sent events."""
    gateway = gateway_of(request)
    gateway.readiness.require()
    fields = await read_request(request, ChatCompletionRequest, gateway.settings.max_body_bytes)
    _check(fields)
    model = gateway.check_model(fields.model)
    generation = new_generation(
        gateway,
        fields,
        [await gateway.prompts.of_chat(fields.messages)],
        request_id=request_id_of(request.scope),
        model=model,
        prompt_field="messages",
        max_tokens=fields.max_completion_tokens or fields.max_tokens or gateway.settings.default_max_tokens,
        logprobs=(fields.top_logprobs or 0) if fields.logprobs else None,
        prediction=await gateway.prompts.of_prediction(fields.prediction.content) if fields.prediction else (),
    )
    completion_id, created = f"chatcmpl-{uuid4().hex}", int(time.time())
    if fields.stream:
        include_usage = bool(fields.stream_options and fields.stream_options.include_usage)
        frames = ChatFrames(completion_id, created, model, generation.num_choices, include_usage=include_usage)
        roles = [frames.first(index) for index in range(generation.num_choices)]  # in index order
        render = chat_logprobs if fields.logprobs else None
        events = stream_events(generation, frames, roles, render_logprobs=render, include_usage=include_usage)
        return respond_streaming(request, events)

    def body(choices: list[Choice]) -> dict[str, Any]:
        return {
            "id": completion_id,
            "object": "chat.completion",
            "created": created,
            "model": model,
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None},
                    "logprobs": chat_logprobs(choice.logprobs, generation.tokenizer) if fields.logprobs else None,
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(choices)
            ],
        }

    return await respond_whole(request, generation, body)


def _check(fields: ChatCompletionRequest) -> None:
    """What is allowed or refused by several fields together."""
    if fields.tools and fields.tool_choice != "none":
        raise Unsupported("tools: tool calls are not supported", "tools")
    if not fields.tools and fields.tool_choice not in (None, "none", "auto"):
        raise InvalidRequest("tool_choice: there are no tools to choose from", "tool_choice")
    if fields.functions:
        raise Unsupported("functions: function calls are not supported", "functions")
    if fields.top_logprobs is not None and not fields.logprobs:
        raise InvalidRequest("top_logprobs: needs logprobs to be true", "top_logprobs")
    given = (fields.max_tokens, fields.max_completion_tokens)
    if None not in given and given[0] != given[1]:
        raise InvalidRequest("max_tokens: only one of max_tokens and max_completion_tokens can be given", "max_tokens")
