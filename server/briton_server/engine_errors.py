"""gRPC status codes with details, back to the errors they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from briton.errors import ERROR_TABLE, BritonError, DeadlineExceeded, InvalidRequest, Unavailable, Unsupported

# The table read from its other side: the name of a gRPC status code -> the error that it stands for.
KIND_OF_CODE: Mapping[str, type[BritonError]] = {status.grpc_code: kind for kind, status in ERROR_TABLE}
_WITHOUT_STATUS: Mapping[type[BritonError], str] = {
    Unavailable: "the engine cannot be reached",
    DeadlineExceeded: "the request took longer than the server's deadline",
}
_DETAILS = "grpc-status-details-bin"

DetailT = TypeVar("DetailT", bound=Message)


class EngineFault(Exception):
    """The engine answered with a status that is a bug on either side."""


def error_from_rpc(error: grpc.aio.AioRpcError) -> Exception:
    """The BritonError a status stands for; EngineFault for INTERNAL and whatever the table does not know."""
    code, message = error.code(), error.details() or error.code().name
    if code is grpc.StatusCode.CANCELLED:
        return Unavailable("the engine ended the request early")
    kind = KIND_OF_CODE.get(code.name)
    if kind is None:
        return EngineFault(f"{code.name}: {message}")
    status = _status_of(error)
    if status is None:  # gRPC's own, without details: its text names sockets
        message = _WITHOUT_STATUS.get(kind, message)
    details = {"field": _field(status), "code": _code(status), "retry_after_s": _retry_after(status)}
    known = {field.name for field in fields(kind)}
    return kind(message, **{name: value for name, value in details.items() if name in known and value is not None})


def with_request_field(error: InvalidRequest | Unsupported, names: Mapping[str, str]) -> InvalidRequest | Unsupported:
    """The error with its field as the HTTP request spells it: "sampling.top_p" is "top_p"; `names` has other prefixes.

    A message that begins with a field's name begins with the other spelling then.
    """
    field = None if error.field is None else _respelled(error.field, names)
    return replace(error, message=_respelled(error.message, names), field=field)


def _respelled(text: str, names: Mapping[str, str]) -> str:
    text = text.removeprefix("sampling.")
    for name in sorted(names, key=len, reverse=True):
        if text.startswith(name) and text[len(name) :][:1] in ("", ".", "[", ":", " "):
            return names[name] + text[len(name) :]
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


def _retry_after(status: status_pb2.Status | None) -> float | None:
    """Seconds."""
    info = _detail(status, error_details_pb2.RetryInfo)
    return info.retry_delay.seconds + info.retry_delay.nanos / 1e9 if info is not None else None
