"""Where a request's body is made into what the engine is asked: on the event loop, or beside it when it is long."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.to_thread

LONG_BODY = 8 * 1024  # bytes: some milliseconds of parsing, template and tokenizer, which every stream would feel
_MAX_THREADS = 2  # more would wait for the interpreter lock, and the event loop behind them

T = TypeVar("T")


class Preparation:
    """Parsing, validating, rendering and encoding are one piece of work, so that it changes threads once."""

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(_MAX_THREADS)

    async def run(self, num_bytes: int, work: Callable[[], T]) -> T:
        """What `work` returns or raises; in a thread for a body of more than LONG_BODY bytes."""
        if num_bytes <= LONG_BODY:
            return work()
        return await anyio.to_thread.run_sync(work, limiter=self._limiter)
