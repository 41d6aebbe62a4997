"""The body of a request: read up to a limit, parsed, validated. Every refusal is an InvalidRequest naming the field."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import pydantic_core
from pydantic import ValidationError
from starlette.requests import Request

from briton.errors import InvalidRequest
from briton_server.protocol.fields import RequestModel

ACCEPTED_ENCODING = "identity"
BODY_TIMEOUT_S = 60.0  # to receive a whole body

_MESSAGES = {
    "missing": "field required",
    "model_type": "must be an object",
    "extra_forbidden": "is not known here, and nothing would enforce it",
}

ModelT = TypeVar("ModelT", bound=RequestModel)


@dataclass(eq=False)
class BodyTooLarge(InvalidRequest):
    """The body is over the limit: status 413."""


@dataclass(eq=False)
class BodyEncoded(InvalidRequest):
    """The body is compressed: status 415."""


@dataclass(eq=False)
class BodyTooSlow(InvalidRequest):
    """The body did not arrive in time: status 408."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """All of the body, whatever its content type says. Raises BodyEncoded, BodyTooLarge and BodyTooSlow."""
    encoding = request.headers.get("content-encoding", ACCEPTED_ENCODING).strip().lower()
    if encoding not in ("", ACCEPTED_ENCODING):
        raise BodyEncoded(
            f"content-encoding: {encoding!r} is not supported: send the body as it is ({ACCEPTED_ENCODING})",
            None,
            "unsupported_content_encoding",
        )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    with anyio.move_on_after(BODY_TIMEOUT_S):
        async for part in request.stream():
            size += len(part)
            if size > max_bytes:
                raise _too_large(max_bytes)
            parts.append(part)
        return b"".join(parts)
    raise BodyTooSlow(f"only {size} bytes of the body came within {BODY_TIMEOUT_S:g} s", None, "request_timeout")


def parse_request(body: bytes, model: type[ModelT]) -> ModelT:
    """JSON to a request model. Fields inside an `extra_body` object count where the request does not set them."""
    try:
        with _no_garbage_collection():
            fields = pydantic_core.from_json(body)
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}", None, "invalid_json") from None
    if not isinstance(fields, dict):
        raise InvalidRequest("the body must be a JSON object", None, "invalid_json")
    if isinstance(extra := fields.get("extra_body"), dict):
        fields = {**extra, **fields}
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _invalid(error) from None


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """For making a million of objects, all of which are wanted: looking for garbage among them again and again takes
    four fifths of the time, which every thread waits for."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _too_large(max_bytes: int) -> BodyTooLarge:
    message = f"the body is larger than the limit of {max_bytes} bytes (briton.max_body_bytes)"
    return BodyTooLarge(message, None, "request_too_large")


def _invalid(error: ValidationError) -> InvalidRequest:
    """The first error of a validation, as one sentence that starts with the field."""
    first = error.errors(include_url=False)[0]
    param = path_of(first["loc"])
    # "Input should be ..." is how all of pydantic's messages about values begin.
    message = _MESSAGES.get(first["type"]) or first["msg"].replace("Input should be", "must be", 1)
    text = f"{param or 'the body'}: {message[:1].lower()}{message[1:]}"
    given = first["input"]
    if first["type"] != "missing" and isinstance(given, str | int | float | bool) and len(repr(given)) <= 60:
        text += f", not {given!r}"
    return InvalidRequest(text, param)


def path_of(location: Sequence[Any]) -> str | None:
    """("messages", 0, "role") to "messages[0].role"; None for the body itself."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif _is_field(part):
            path += f".{part}" if path else part
    return path or None


def _is_field(part: str) -> bool:
    """Not a mark that pydantic puts among fields: "[key]" for a key, "str" or "dict[str,any]" for a union's branch."""
    return "[" not in part and part not in ("str", "is-instance")
