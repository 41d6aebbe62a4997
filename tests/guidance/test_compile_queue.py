"""One compile at a time; nobody waits for ever, and who leaves is not waited for."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Iterator

import pytest

from briton.errors import QueueFull
from briton.guidance.compile_queue import CompileQueue


@pytest.fixture
def compile_queue() -> Iterator[CompileQueue]:
    compile_queue = CompileQueue("guide", max_wait_s=0.1)
    yield compile_queue
    compile_queue.close()


@pytest.mark.timing
async def test_a_turn_that_does_not_come_in_time(compile_queue: CompileQueue) -> None:
    go = threading.Event()
    first = asyncio.ensure_future(compile_queue.run(go.wait))
    await asyncio.sleep(0)
    begin = time.monotonic()
    with pytest.raises(QueueFull, match=r"within 0\.1 s"):
        await compile_queue.run(lambda: "late")
    assert time.monotonic() - begin < 2
    go.set()
    assert await first
    assert await compile_queue.run(lambda: "in time") == "in time"


async def test_who_leaves_the_queue_is_not_compiled_for(compile_queue: CompileQueue) -> None:
    go = threading.Event()
    made: list[int] = []
    first = asyncio.ensure_future(compile_queue.run(go.wait))
    waiting = [asyncio.ensure_future(compile_queue.run(functools.partial(made.append, i))) for i in range(3)]
    await asyncio.sleep(0.01)
    waiting[1].cancel()
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(first, *waiting, return_exceptions=True)
    assert made == [0, 2]


async def test_an_error_frees_the_turn(compile_queue: CompileQueue) -> None:
    with pytest.raises(ZeroDivisionError):
        await compile_queue.run(lambda: 1 / 0)
    assert await compile_queue.run(lambda: 1) == 1


async def served(compile_queue: CompileQueue, *queued: tuple[str, int, float]) -> list[str]:
    """The order in which these (caller, size, seconds) are compiled, all of them queued behind another."""
    order: list[str] = []
    go = threading.Event()

    def make(caller: str, seconds: float) -> None:
        time.sleep(seconds)
        order.append(caller)

    first = asyncio.ensure_future(compile_queue.run(go.wait, ["first"]))
    await asyncio.sleep(0)
    waiting = [
        asyncio.ensure_future(compile_queue.run(functools.partial(make, caller, seconds), [caller], size))
        for caller, size, seconds in queued
    ]
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(first, *waiting)
    return order


@pytest.fixture
def patient() -> Iterator[CompileQueue]:
    compile_queue = CompileQueue("guide", max_wait_s=30.0)
    yield compile_queue
    compile_queue.close()


async def test_callers_take_turns(patient: CompileQueue) -> None:
    order = await served(patient, *[("many", 0, 0.01)] * 6, ("one", 0, 0.01), ("other", 0, 0.01))
    assert order.index("one") <= 2
    assert order.index("other") <= 3


async def test_who_takes_longer_gets_fewer_turns(patient: CompileQueue) -> None:
    order = await served(patient, *[("slow", 0, 0.05)] * 4, *[("quick", 0, 0.01)] * 4)
    assert order[-2:] == ["slow", "slow"]


async def test_of_one_caller_the_smallest_comes_first(patient: CompileQueue) -> None:
    sizes: list[int] = []
    go = threading.Event()
    first = asyncio.ensure_future(patient.run(go.wait))
    await asyncio.sleep(0)
    waiting = [
        asyncio.ensure_future(patient.run(functools.partial(sizes.append, size), size=size)) for size in (3, 1, 2, 1)
    ]
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(first, *waiting)
    assert sizes == [1, 1, 2, 3]


async def test_time_that_was_not_used_is_not_saved_up(patient: CompileQueue) -> None:
    """Who comes late starts level: he is next, but does not hold the thread until he has had as much as the others."""
    order: list[str] = []

    def make(caller: str) -> None:
        time.sleep(0.01)
        order.append(caller)

    early = [asyncio.ensure_future(patient.run(functools.partial(make, "early"), ["early"])) for _ in range(30)]
    await asyncio.wait(early, timeout=0.1)
    late = [asyncio.ensure_future(patient.run(functools.partial(make, "late"), ["late"])) for _ in range(8)]
    await asyncio.gather(*early, *late)
    after = order[order.index("late") :]
    assert "early" in after[:4]


async def test_a_turn_that_comes_to_who_has_just_left_goes_on(patient: CompileQueue) -> None:
    go = threading.Event()
    first = asyncio.ensure_future(patient.run(go.wait))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(patient.run(lambda: 2))
    await asyncio.sleep(0)
    go.set()
    await asyncio.wait([first])  # in the same pass of the loop the turn has come, and nobody has taken it yet
    second.cancel()
    assert await asyncio.wait_for(patient.run(lambda: 3), 5) == 3


async def test_the_thread_stays_busy_until_an_abandoned_compile_has_ended(patient: CompileQueue) -> None:
    order: list[int] = []
    go = threading.Event()

    def make() -> None:
        go.wait()
        order.append(1)

    first = asyncio.ensure_future(patient.run(make))
    await asyncio.sleep(0.01)
    first.cancel()
    second = asyncio.ensure_future(patient.run(lambda: order.append(2)))
    await asyncio.sleep(0.01)
    assert not second.done()
    go.set()
    await second
    assert order == [1, 2]
