"""Tells an executor that hangs from one that works or rests, by its steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

DEATH_FACTOR = 10  # an executor that stalls for so many timeouts is given up


class Watched(Protocol):
    """What is watched. The methods are called in the event loop, except `num_steps`, which may block."""

    @property
    def num_open(self) -> int:
        """Requests that wait for the executor."""
        ...

    @property
    def num_batches(self) -> int:
        """Batches of chunks that came from the executor."""
        ...

    def num_steps(self) -> int:
        """Steps that the executor made; called in a thread."""
        ...

    def on_stall(self, stalled_s: float) -> None:
        """No progress for longer than the timeout; called again while it lasts."""
        ...

    def on_progress(self) -> None:
        """There is progress, or nothing to do."""
        ...

    def on_death(self, stalled_s: float) -> None:
        """No progress for so long that none will come."""
        ...


async def watch(watched: Watched, timeout_s: float, is_over: Callable[[], bool]) -> None:
    """Look four times in each timeout. Chunks and steps are progress; so is having nothing to do."""
    loop = asyncio.get_running_loop()
    question: asyncio.Future[int] | None = None  # at most one is open at a time: its answer may never come
    seen_batches = seen_steps = -1
    since = loop.time()
    while not is_over():
        await asyncio.sleep(timeout_s / 4)
        progress = watched.num_open == 0 or watched.num_batches != seen_batches
        seen_batches = watched.num_batches
        if not progress:  # no chunk since the last look: was there a step at least?
            if question is None:
                question = loop.run_in_executor(None, watched.num_steps)
            await asyncio.wait({question}, timeout=timeout_s / 4)
            if question.done():
                steps = seen_steps if question.exception() is not None else question.result()
                progress, seen_steps, question = steps != seen_steps, steps, None
        if progress:
            since = loop.time()
            watched.on_progress()
        elif (stalled_s := loop.time() - since) >= DEATH_FACTOR * timeout_s:
            watched.on_death(stalled_s)
        elif stalled_s >= timeout_s:
            watched.on_stall(stalled_s)
