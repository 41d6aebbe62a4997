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
from briton_server.body import parse_request, read_body
from briton_server.frames import CompletionFrames
from briton_server.gateway import Gateway, gateway_of
from briton_server.generation import Generation
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
    content = await read_body(request, gateway.settings.max_body_bytes)
    request_id = request_id_of(request.scope)
    fields, model, generation, echoes = await gateway.preparation.run(
        len(content), lambda: _prepare(gateway, content, request_id)
    )
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


def _prepare(gateway: Gateway, content: bytes, request_id: str) -> tuple[CompletionRequest, str, Generation, list[str]]:
    """From the body to what the engine is asked: the fields, the model's name, the calls, and what each text begins
    with. Raises what is refused."""
    fields = parse_request(content, CompletionRequest)
    _check(fields)
    model = gateway.check_model(fields.model)
    max_seq_len = gateway.readiness.require().max_seq_len
    generation = new_generation(
        gateway,
        fields,
        [gateway.prompts.of_completion(prompt, max_seq_len=max_seq_len) for prompt in fields.prompt],
        request_id=request_id,
        model=model,
        prompt_field="prompt",
        max_tokens=fields.max_tokens or gateway.settings.default_max_tokens or DEFAULT_MAX_TOKENS,
        logprobs=fields.logprobs,
        continues_prompt=True,
    )
    echoes = [_echo(gateway, prompt) if fields.echo else "" for prompt in fields.prompt for _ in range(fields.n or 1)]
    return fields, model, generation, echoes


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
