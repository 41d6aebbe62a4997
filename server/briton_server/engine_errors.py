"""gRPC status codes with details, back to the errors they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from briton.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    QueueFull,
    Unavailable,
    Unsupported,
)

_DETAILS = "grpc-status-details-bin"
_RETRY_AFTER_S = 2.0

DetailT = TypeVar("DetailT", bound=Message)


class EngineFault(Exception):
    """The engine answered with a status that is a bug on either side."""


def error_from_rpc(error: grpc.aio.AioRpcError) -> Exception:
    """The BritonError a status stands for; EngineFault for INTERNAL and whatever the table does not know."""
    code, message = error.code(), error.details() or error.code().name
    status = _status_of(error)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        return InvalidRequest(message, _field(status), _code(status))
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Unsupported(message, _field(status))
    if code is grpc.StatusCode.NOT_FOUND:
        return ModelNotFound(message)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return QueueFull(message, _retry_after(status, 1.0))
    if code is grpc.StatusCode.UNAVAILABLE:
        # Without details it is gRPC's own: the connection failed, and its text names sockets.
        return Unavailable(message if status else "the engine cannot be reached", _retry_after(status, _RETRY_AFTER_S))
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("the request took longer than the server's deadline")
    if code is grpc.StatusCode.CANCELLED:
        return Unavailable("the engine ended the request early", _RETRY_AFTER_S)
    return EngineFault(f"{code.name}: {message}")


def with_request_field(error: InvalidRequest | Unsupported, fields: Mapping[str, str]) -> InvalidRequest | Unsupported:
    """The error with its field as the HTTP request spells it: "sampling.top_p" is "top_p"; `fields` has other prefixes.

    A message that begins with a field's name begins with the other spelling then.
    """
    field = None if error.field is None else _respelled(error.field, fields)
    return replace(error, message=_respelled(error.message, fields), field=field)


def _respelled(text: str, fields: Mapping[str, str]) -> str:
    text = text.removeprefix("sampling.")
    for name in sorted(fields, key=len, reverse=True):
        if text.startswith(name) and text[len(name) :][:1] in ("", ".", "[", ":", " "):
            return fields[name] + text[len(name) :]
    return text


def _status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status | None:
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS:
            status = status_pb2.Status()
            status.ParseFromString(value)
            return status
    return None


def _detail(status: status_pb2.Status | None, kind: type[DetailT]) -> DetailT | None:
    for packed in status.details if status is not None else ():
        detail = kind()
        if packed.Is(detail.DESCRIPTOR):
            packed.Unpack(detail)
            return detail
    return None


def _field(status: status_pb2.Status | None) -> str | None:
    bad = _detail(status, error_details_pb2.BadRequest)
    return bad.field_violations[0].field or None if bad is not None and bad.field_violations else None


def _code(status: status_pb2.Status | None) -> str | None:
    info = _detail(status, error_details_pb2.ErrorInfo)
    return info.reason or None if info is not None else None


def _retry_after(status: status_pb2.Status | None, default: float) -> float:
    info = _detail(status, error_details_pb2.RetryInfo)
    return info.retry_delay.seconds + info.retry_delay.nanos / 1e9 if info is not None else default
