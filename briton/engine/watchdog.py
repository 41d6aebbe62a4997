"""Tells an executor that hangs from one that works or rests: by its steps, and by what it leaves unanswered."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from briton.engine.types import StepProgress

UNKNOWN_STEP_S = 60.0  # what a step may take on an executor that has not made one yet


@dataclass(frozen=True, slots=True)
class StallLimits:
    """When an executor counts as stalled, and when it is given up. Seconds."""

    least_s: float = 2.0  # nothing shorter is a stall
    factor: float = 20.0  # a step that takes so many times what it should is one
    give_up_s: float = 5.0  # of a stall, and the executor is given up

    def limit_s(self, expected_s: float | None) -> float:
        """What a step may take that should take `expected_s`."""
        return max(self.least_s, UNKNOWN_STEP_S if expected_s is None else self.factor * expected_s)


class WatchedEngine(Protocol):
    """What is watched. The methods are called in the event loop, except `progress`, which may block."""

    @property
    def num_open(self) -> int:
        """Requests whose end the executor has not confirmed."""
        ...

    @property
    def num_batches(self) -> int:
        """Batches of chunks that came from the executor."""
        ...

    def longest_cancel_s(self) -> float:
        """How long a cancel has gone unanswered."""
        ...

    def forgive(self, seconds: float) -> None:
        """So much of the time since any cancel counts for nothing."""
        ...

    def progress(self) -> StepProgress:
        """Where the executor stands; called in a thread."""
        ...

    def on_stall(self, stalled_s: float) -> None:
        """It has been still for longer than it may be; called again while it lasts."""
        ...

    def on_progress(self) -> None:
        """There is progress, or nothing to do."""
        ...

    def on_death(self, stalled_s: float) -> None:
        """It has been still for so long that it is given up."""
        ...


async def watch(engine: WatchedEngine, limits: StallLimits, is_over: Callable[[], bool]) -> None:
    """Look some times a second, until `is_over`.

    Progress is a step, a chunk, or having nothing open: a request whose caller has left is open until the executor
    confirms its end. An executor that does not answer the question where it stands makes no progress either. What this
    process itself slept through (SIGSTOP, a debugger) counts for nothing.
    """
    loop = asyncio.get_running_loop()
    look_s = limits.least_s / 8
    question: asyncio.Future[StepProgress] | None = None  # at most one is open at a time: its answer may never come
    seen: tuple[int, int] | None = None  # batches, steps
    known = StepProgress(0, None)
    since = slept = loop.time()
    while not is_over():
        await asyncio.sleep(look_s)
        now = loop.time()
        if (lost := now - slept - look_s) > limits.least_s:
            since += lost
            engine.forgive(lost)
        slept = now
        if question is None:
            question = _ask(loop, engine.progress)
        await asyncio.wait({question}, timeout=look_s)
        if question.done():
            known = known if question.exception() is not None else question.result()
            question = None
        state = (engine.num_batches, known.num_steps)
        if engine.num_open == 0 or state != seen:
            seen, since = state, loop.time()
        still_s = loop.time() - since
        limit_s = limits.limit_s(known.expected_s)
        stalled_s = max(still_s, engine.longest_cancel_s()) if engine.num_open else 0.0
        if stalled_s < limit_s:
            engine.on_progress()
        elif stalled_s < limit_s + limits.give_up_s:
            engine.on_stall(stalled_s)
        else:
            engine.on_death(stalled_s)


def _ask(loop: asyncio.AbstractEventLoop, progress: Callable[[], StepProgress]) -> asyncio.Future[StepProgress]:
    """The answer, from a thread of its own: in the loop's pool it might wait behind long prompts, and an answer that
    never comes would keep one of the pool's threads."""
    answer: asyncio.Future[StepProgress] = loop.create_future()

    def settle(result: StepProgress | Exception) -> None:
        if answer.cancelled():
            return
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    def ask() -> None:
        result: StepProgress | Exception
        try:
            result = progress()
        except Exception as error:
            result = error
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result)

    threading.Thread(target=ask, name="briton-watchdog", daemon=True).start()
    return answer
