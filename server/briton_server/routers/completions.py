"""POST /v1/completions."""

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
from briton_server.frames import CompletionFrames
from briton_server.gateway import Gateway, gateway_of
from briton_server.generation_request import new_generation
from briton_server.logprobs import completion_logprobs
from briton_server.middleware import request_id_of
from briton_server.protocol.completions import Completion, CompletionRequest, Prompt

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_SEQUENCES = 128  # prompts times n

router = APIRouter(tags=["completions"])


@router.post("/v1/completions", response_model=Completion, summary="Continue a text")
async def create_completion(request: Request) -> Response:
    """The continuation of one or several prompts, whole or as server-sent events."""
    gateway = gateway_of(request)
    gateway.readiness.require()
    fields = await read_request(request, CompletionRequest, gateway.settings.max_body_bytes)
    _check(fields)
    model = gateway.check_model(fields.model)
    generation = new_generation(
        gateway,
        fields,
        [await gateway.prompts.of_completion(prompt) for prompt in fields.prompt],
        request_id=request_id_of(request.scope),
        model=model,
        prompt_field="prompt",
        max_tokens=fields.max_tokens or gateway.settings.default_max_tokens or DEFAULT_MAX_TOKENS,
        logprobs=fields.logprobs,
        continues_prompt=True,
    )
    n = fields.n or 1
    echoes = [_echo(gateway, prompt) if fields.echo else "" for prompt in fields.prompt for _ in range(n)]
    completion_id, created = f"cmpl-{uuid4().hex}", int(time.time())
    if fields.stream:
        include_usage = bool(fields.stream_options and fields.stream_options.include_usage)
        frames = CompletionFrames(completion_id, created, model, generation.num_choices, include_usage=include_usage)
        begins = generation.num_choices > 1 or fields.echo  # several choices begin in index order
        opening = [frames.text(index, echo) for index, echo in enumerate(echoes)] if begins else []
        render = completion_logprobs if fields.logprobs is not None else None
        events = stream_events(generation, frames, opening, render_logprobs=render, include_usage=include_usage)
        return respond_streaming(request, events)

    def body(choices: list[Choice]) -> dict[str, Any]:
        return {
            "id": completion_id,
            "object": "text_completion",
            "created": created,
            "model": model,
            "choices": [
                {
                    "index": index,
                    "text": echo + choice.text,
                    "logprobs": None
                    if fields.logprobs is None
                    else completion_logprobs(choice.logprobs, generation.tokenizer),
                    "finish_reason": choice.finish_reason,
                }
                for index, (echo, choice) in enumerate(zip(echoes, choices, strict=True))
            ],
        }

    return await respond_whole(request, generation, body)


def _check(fields: CompletionRequest) -> None:
    """What is allowed or refused by several fields together."""
    n = fields.n or 1
    if len(fields.prompt) * n > MAX_SEQUENCES:
        raise InvalidRequest(
            f"n: {len(fields.prompt)} prompts times n = {n} are more than the limit of {MAX_SEQUENCES} texts",
            "n",
        )
    if fields.suffix:
        raise Unsupported("suffix: insertion is not supported", "suffix")
    if fields.best_of is not None and fields.best_of > n:
        raise Unsupported("best_of: only the n that are returned are generated", "best_of")
    if fields.echo and fields.logprobs is not None:
        raise Unsupported("echo: log probabilities of the prompt are not supported", "echo")


def _echo(gateway: Gateway, prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else gateway.prompts.tokenizer.decode(prompt)
