"""One thread that compiles, and a bounded wait for it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import anyio

from briton.errors import QueueFull

T = TypeVar("T")


class CompileThread:
    """Runs one compile after the other, first come, first served. For one event loop."""

    def __init__(self, name: str, max_wait_s: float) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._max_wait_s = max_wait_s
        self._turn = asyncio.Lock()

    async def run(self, make: Callable[[], T]) -> T:
        """What `make` returns or raises, from the thread. Raises QueueFull when its turn does not come in time.

        A caller that is cancelled while it waits leaves the queue: nothing is compiled for it.
        """
        with anyio.move_on_after(self._max_wait_s) as wait:
            await self._turn.acquire()
        if wait.cancelled_caught:
            raise QueueFull(f"no guide could be compiled within {self._max_wait_s:g} s: others are compiling")
        try:
            run = contextvars.copy_context().run  # log lines name the request that asked first
            return await asyncio.get_running_loop().run_in_executor(self._thread, run, make)
        finally:
            self._turn.release()

    def close(self) -> None:
        """Wait for nothing. Idempotent."""
        self._thread.shutdown(wait=False, cancel_futures=True)
