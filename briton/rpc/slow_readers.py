"""Ends calls whose client does not read: what is written then waits for room in the connection, for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

WRITE_TIMEOUT_S = 30.0  # that one response may wait for its client
_LOOK_S = 5.0


class SlowReaders:
    """Writes that are under way. Looking at all of them now and then costs nothing a write; a timer for each would."""

    def __init__(self, write_timeout_s: float = WRITE_TIMEOUT_S, look_s: float = _LOOK_S) -> None:
        self._write_timeout_s = write_timeout_s
        self._look_s = look_s
        self._since: dict[asyncio.Task[object], float] = {}  # task of a call -> when its write began
        self._watch: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around one write of the running task, which is cancelled if it takes too long."""
        task = asyncio.current_task()
        assert task is not None
        self._since[task] = asyncio.get_running_loop().time()
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look())
        try:
            yield
        finally:
            del self._since[task]

    def close(self) -> None:
        """Look no more."""
        if self._watch is not None:
            self._watch.cancel()

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._look_s)
            limit = asyncio.get_running_loop().time() - self._write_timeout_s
            for task in [task for task, since in self._since.items() if since < limit]:
                task.cancel()
