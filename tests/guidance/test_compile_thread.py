"""One compile at a time; nobody waits for ever, and who leaves is not waited for."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Iterator

import pytest

from briton.errors import QueueFull
from briton.guidance.compile_thread import CompileThread


@pytest.fixture
def compile_thread() -> Iterator[CompileThread]:
    compile_thread = CompileThread("guide", max_wait_s=0.1)
    yield compile_thread
    compile_thread.close()


@pytest.mark.timing
async def test_a_turn_that_does_not_come_in_time(compile_thread: CompileThread) -> None:
    go = threading.Event()
    first = asyncio.ensure_future(compile_thread.run(go.wait))
    await asyncio.sleep(0)
    begin = time.monotonic()
    with pytest.raises(QueueFull, match=r"within 0\.1 s"):
        await compile_thread.run(lambda: "late")
    assert time.monotonic() - begin < 2
    go.set()
    assert await first
    assert await compile_thread.run(lambda: "in time") == "in time"


async def test_who_leaves_the_queue_is_not_compiled_for(compile_thread: CompileThread) -> None:
    go = threading.Event()
    made: list[int] = []
    first = asyncio.ensure_future(compile_thread.run(go.wait))
    waiting = [asyncio.ensure_future(compile_thread.run(functools.partial(made.append, i))) for i in range(3)]
    await asyncio.sleep(0.01)
    waiting[1].cancel()
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(first, *waiting, return_exceptions=True)
    assert made == [0, 2]


async def test_an_error_frees_the_turn(compile_thread: CompileThread) -> None:
    with pytest.raises(ZeroDivisionError):
        await compile_thread.run(lambda: 1 / 0)
    assert await compile_thread.run(lambda: 1) == 1
