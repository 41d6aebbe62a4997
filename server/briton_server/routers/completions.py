"""POST /v1/completions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from briton.errors import InvalidRequest, Unsupported
from briton_server.answer import AnswerKind, respond
from briton_server.frames import CompletionFrames
from briton_server.gateway import Gateway
from briton_server.generation import Generation
from briton_server.generation_request import new_generation, receive
from briton_server.logprobs import completion_logprobs
from briton_server.openapi import ERRORS, STREAM, reads
from briton_server.protocol.completions import Completion, CompletionRequest, Prompt

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MAX_SEQUENCES = 128  # prompts times n

router = APIRouter(tags=["completions"])


def _text(text: str) -> dict[str, Any]:
    return {"text": text}


_COMPLETION = AnswerKind("cmpl", "text_completion", CompletionFrames, _text, completion_logprobs)


@router.post(
    "/v1/completions",
    response_model=Completion,
    responses={**STREAM, **ERRORS},
    openapi_extra=reads(CompletionRequest),
    summary="Continue a text",
)
async def create_completion(request: Request) -> Response:
    """The continuation of one or several prompts, whole or as server-sent events."""
    fields, model, (generation, echoes) = await receive(request, CompletionRequest, _check, _generation)
    return await respond(
        request,
        fields,
        generation,
        _COMPLETION,
        model=model,
        with_logprobs=fields.logprobs is not None,
        beginnings=echoes,
        opens=generation.num_choices > 1 or bool(fields.echo),  # one choice needs no order
    )


def _generation(
    gateway: Gateway, fields: CompletionRequest, model: str, request_id: str
) -> tuple[Generation, list[str]]:
    """What the engine is asked, and what each text begins with."""
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
    return generation, echoes


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
