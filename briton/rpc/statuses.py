"""Errors as gRPC statuses with details: google.rpc.BadRequest, ErrorInfo, RetryInfo. The table: `briton.errors`."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn, cast

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from briton.errors import BritonError, wire_status_of

# A status travels in HTTP/2 headers, of which peers take 8 KiB in all, and its message goes three times:
# percent-encoded, up to three bytes for one, and base64-encoded in the status and in its BadRequest.
MAX_MESSAGE_LENGTH = 1000  # bytes of UTF-8
MAX_FIELD_LENGTH = 200
ERROR_DOMAIN = "briton"


def status_of(error: BaseException) -> grpc.Status:
    """The status that tells a caller about an error. What is not a BritonError is a bug, and that is all it says."""
    told = error if isinstance(error, BritonError) else BritonError("internal error")
    text = _shorten(told.message, MAX_MESSAGE_LENGTH)
    status = status_pb2.Status(code=grpc.StatusCode[wire_status_of(error).grpc_code].value[0], message=text)
    if field := getattr(told, "field", None):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_shorten(field, MAX_FIELD_LENGTH), description=text
        )
        _attach(status, error_details_pb2.BadRequest(field_violations=[violation]))
    if code := getattr(told, "code", None):
        _attach(status, error_details_pb2.ErrorInfo(reason=code, domain=ERROR_DOMAIN))
    if (retry_after_s := getattr(told, "retry_after_s", None)) is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(retry_after_s * 1000))
        _attach(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return cast("grpc.Status", rpc_status.to_status(status))


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: BaseException) -> NoReturn:
    """End a call with an error's status; where its caller has gone meanwhile, the call counts as cancelled."""
    status = status_of(error)
    try:
        await context.abort(status.code, status.details, status.trailing_metadata)
    except grpc.aio.AbortError:
        raise
    except Exception as failure:  # gRPC's own, which it does not export: the status could not be sent
        raise asyncio.CancelledError from failure
    raise AssertionError("abort returned")


def _attach(status: status_pb2.Status, detail: message.Message) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def _shorten(text: str, limit: int) -> str:
    """`text` in at most `limit` bytes of UTF-8."""
    encoded = text.encode(errors="replace")
    return text if len(encoded) <= limit else encoded[: limit - 3].decode(errors="ignore") + "…"
