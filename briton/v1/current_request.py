"""The request that the current task works for, by its caller's own id: log lines say it."""

from __future__ import annotations

from contextvars import ContextVar

MAX_REQUEST_ID_LENGTH = 256

current_request: ContextVar[str] = ContextVar("briton.current_request", default="")  # empty: none, or one without an id
