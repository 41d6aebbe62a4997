"""A thread that compiles one text after another, fair by caller, and a bounded wait for it."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import anyio

from briton.errors import QueueFull

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Turn:
    callers: Collection[str]  # who wait for it: others may join, and leave
    size: int
    number: int
    begun: asyncio.Event = field(default_factory=asyncio.Event)


class CompileQueue:
    """The next turn is that of the caller who had the fewest seconds of the thread; of one caller's, the smallest
    text's, then the first's (start-time fair queueing: Goyal et al. 1996). For one event loop.

    Who comes after a pause starts level with the others: time that was not used is not saved up.
    """

    def __init__(self, name: str, max_wait_s: float) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._max_wait_s = max_wait_s
        self._waiting: list[_Turn] = []
        self._running: _Turn | None = None
        self._numbers = itertools.count()
        self._seconds: dict[str, float] = {}  # of the thread, by caller
        self._level = 0.0  # where who comes now starts

    async def run(self, make: Callable[[], T], callers: Collection[str] = ("",), size: int = 0) -> T:
        """What `make` returns or raises, from the thread. Raises QueueFull when its turn does not come in time.

        A caller that is cancelled while it waits leaves the queue: nothing is compiled for it. One that is cancelled
        later leaves the thread at work, and the next turn waits for its end.
        """
        turn = _Turn(callers, size, next(self._numbers))
        self._waiting.append(turn)
        self._begin_next()
        try:
            with anyio.move_on_after(self._max_wait_s):
                await turn.begun.wait()
        except asyncio.CancelledError:
            self._leave(turn)
            raise
        if not turn.begun.is_set():
            self._leave(turn)
            raise QueueFull(f"no guide could be compiled within {self._max_wait_s:g} s: others are compiling")
        return await self._run(turn, make)

    def close(self) -> None:
        """Wait for nothing. Idempotent."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _leave(self, turn: _Turn) -> None:
        """Nothing is to be compiled for it, though its turn may just have come."""
        if turn is self._running:
            self._running = None
            self._begin_next()
        else:
            self._waiting.remove(turn)

    async def _run(self, turn: _Turn, make: Callable[[], T]) -> T:
        run = contextvars.copy_context().run  # log lines name the request that asked first
        caller = next(iter(turn.callers), "")
        started = time.monotonic()
        try:
            compiling = asyncio.get_running_loop().run_in_executor(self._thread, run, make)
        except RuntimeError:  # closed
            self._end(caller, started)
            raise
        compiling.add_done_callback(lambda done: self._end(caller, started, done))
        return await asyncio.shield(compiling)

    def _begin_next(self) -> None:
        if self._running is None and self._waiting:
            turn = min(self._waiting, key=lambda t: (self._least(t.callers), t.size, t.number))
            self._level = self._least(turn.callers)
            self._waiting.remove(turn)
            self._running = turn
            turn.begun.set()

    def _end(self, caller: str, started: float, done: asyncio.Future[T] | None = None) -> None:
        if done is not None and not done.cancelled():
            done.exception()  # seen, also where nobody waits for it any more
        self._seconds[caller] = self._least([caller]) + time.monotonic() - started
        self._running = None
        self._begin_next()
        if self._running is None:
            self._seconds.clear()
            self._level = 0.0

    def _least(self, callers: Collection[str]) -> float:
        """Seconds of the one who had the fewest."""
        return max(self._level, min((self._seconds.get(caller, 0.0) for caller in callers), default=0.0))
