"""The error body, the same for every error: https://platform.openai.com/docs/guides/error-codes."""

from __future__ import annotations

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What is wrong. `param` is the path of the offending field, such as `messages[0].role`."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The whole body, and the `data` of an error in a stream."""

    error: ErrorDetail
