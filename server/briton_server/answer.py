"""Sends a generation as an answer in one piece or as a stream: what is the same for every kind of answer."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from briton.errors import BritonError
from briton.text.sequence_text import PlacedLogprob
from briton.text.tokenizer import Tokenizer
from briton.v1 import engine_pb2
from briton_server.connection import connection_of
from briton_server.disconnect import cancelled_on_disconnect
from briton_server.errors import error_event, log_unless_told
from briton_server.gateway import gateway_of
from briton_server.generation import Generation
from briton_server.middleware import request_id_of
from briton_server.protocol.generation import GenerationFields
from briton_server.sse import DONE, EventStream

READ_GRACE_S = 5.0  # beyond the request's deadline, for its client to read what there is
CLIENT_CLOSED_REQUEST = 499  # nginx's status; nobody is there to read it, but metrics are

LogprobsRenderer = Callable[[Sequence[PlacedLogprob[engine_pb2.TokenLogprob]], Tokenizer], dict[str, Any]]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Choice:
    """A finished sequence."""

    text: str = ""
    logprobs: list[PlacedLogprob[engine_pb2.TokenLogprob]] = field(default_factory=list)
    finish_reason: str | None = None


class Frames(Protocol):
    """The chunks of one kind of stream."""

    def first(self, index: int, text: str = "") -> str: ...

    def text(self, index: int, text: str, logprobs: dict[str, Any] | None = None) -> str: ...

    def finish(self, index: int, reason: str) -> str: ...

    def usage(self, usage: dict[str, Any]) -> str: ...


class AnswerKind(NamedTuple):
    """What tells the answers of one endpoint from those of another."""

    id_prefix: str
    object: str  # the name of a whole answer's type
    frames: Callable[..., Frames]  # (id, created, model, number of choices, include_usage=)
    content: Callable[[str], dict[str, Any]]  # of a choice with this text
    logprobs: LogprobsRenderer


async def respond(
    request: Request,
    fields: GenerationFields,
    generation: Generation,
    kind: AnswerKind,
    *,
    model: str,
    with_logprobs: bool,
    beginnings: Sequence[str],
    opens: bool = True,
) -> Response:
    """The answer, whole or as a stream. `beginnings` come before the text of each choice; `opens`: a stream begins with
    a chunk for each choice, in index order."""
    answer_id, created = f"{kind.id_prefix}-{uuid4().hex}", int(time.time())
    render_logprobs = kind.logprobs if with_logprobs else None
    if fields.stream:
        include_usage = bool(fields.stream_options and fields.stream_options.include_usage)
        frames = kind.frames(answer_id, created, model, generation.num_choices, include_usage=include_usage)
        opening = [frames.first(index, text) for index, text in enumerate(beginnings)] if opens else []
        events = _events(generation, frames, opening, render_logprobs=render_logprobs, include_usage=include_usage)
        return _respond_streaming(request, events)

    def body(choices: list[Choice]) -> dict[str, Any]:
        return {
            "id": answer_id,
            "object": kind.object,
            "created": created,
            "model": model,
            "choices": [
                {
                    "index": index,
                    **kind.content(beginning + choice.text),
                    "logprobs": render_logprobs and render_logprobs(choice.logprobs, generation.tokenizer),
                    "finish_reason": choice.finish_reason,
                }
                for index, (beginning, choice) in enumerate(zip(beginnings, choices, strict=True))
            ],
        }

    return await _respond_whole(request, generation, body)


async def _respond_whole(
    request: Request, generation: Generation, body: Callable[[list[Choice]], Mapping[str, Any]]
) -> Response:
    """Wait for all choices and answer with `body` of them. A client that leaves cancels the generation at once."""
    async with cancelled_on_disconnect(request.receive):
        choices = await _collect(generation)
        return JSONResponse({**body(choices), "usage": generation.usage()}, headers=generation.server_timing())
    gateway_of(request).metrics.disconnects.inc()
    return Response(status_code=CLIENT_CLOSED_REQUEST)


def _respond_streaming(request: Request, events: AsyncGenerator[bytes, None]) -> Response:
    """Stream events; an error after the first becomes one too."""
    gateway, connection = gateway_of(request), connection_of(request.scope)
    timeout_s = gateway.settings.request_timeout_s

    def on_error(error: Exception) -> bytes:
        request_id = request_id_of(request.scope)
        log_unless_told(error, request_id)
        if isinstance(error, BritonError):  # the status that was sent and counted is 200
            logger.warning("request %s: the stream ends with an error: %s", request_id, error)
        return error_event(error)

    return EventStream(
        events,
        keepalive_s=gateway.settings.keepalive_s,
        timeout_s=None if timeout_s is None else timeout_s + READ_GRACE_S,
        abort=None if connection is None else connection.abort,
        error_event=on_error,
        on_disconnect=gateway.metrics.disconnects.inc,
    )


async def _events(
    generation: Generation,
    frames: Frames,
    opening: list[str],
    *,
    render_logprobs: LogprobsRenderer | None,
    include_usage: bool,
) -> AsyncGenerator[bytes, None]:
    """`opening` with the engine's first response, deltas, finishes, usage, [DONE]: one event an engine step."""
    parts = opening
    async with aclosing(generation.steps()) as steps:
        async for step in steps:
            for index, delta in step:
                text, logprobs, finish_reason = delta
                if render_logprobs is not None and (text or logprobs):
                    parts.append(frames.text(index, text, render_logprobs(logprobs, generation.tokenizer)))
                elif text:
                    parts.append(frames.text(index, text))
                if finish_reason is not None:
                    parts.append(frames.finish(index, finish_reason))
            if parts:
                yield "".join(parts).encode()
                parts = []
    yield (frames.usage(generation.usage()).encode() if include_usage else b"") + DONE


async def _collect(generation: Generation) -> list[Choice]:
    choices = [Choice() for _ in range(generation.num_choices)]
    parts: list[list[str]] = [[] for _ in choices]
    async with aclosing(generation.steps()) as steps:
        async for step in steps:
            for index, delta in step:
                parts[index].append(delta.text)
                choices[index].logprobs += delta.logprobs
                choices[index].finish_reason = delta.finish_reason or choices[index].finish_reason
    for choice, texts in zip(choices, parts, strict=True):
        choice.text = "".join(texts)
    return choices
