"""One flight for each key; bounded; failures are remembered for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from briton.errors import InvalidRequest, QueueFull, Unavailable
from briton.guidance.cache import SingleFlightCache


@dataclass(frozen=True)
class Block:
    name: str
    nbytes: int = 10

    @property
    def memory(self) -> object:
        return self


class Maker:
    """Makes blocks, counts how often, and waits to be let go."""

    def __init__(self, value: str = "a", error: Exception | None = None) -> None:
        self.value, self.error, self.calls, self.go = value, error, 0, asyncio.Event()

    async def __call__(self) -> Block:
        self.calls += 1
        await self.go.wait()
        if self.error:
            raise self.error
        return Block(self.value)


def new_cache(clock: Callable[[], float] = lambda: 0.0, **overrides: Any) -> SingleFlightCache[Block]:
    return SingleFlightCache(**{"max_bytes": 100, "max_entries": 5, "failure_ttl_s": 60.0, "clock": clock, **overrides})


async def test_callers_at_once_share_one_flight() -> None:
    cache, make = new_cache(), Maker()
    waiting = [asyncio.ensure_future(cache.get(b"k", make)) for _ in range(10)]
    await asyncio.sleep(0)
    make.go.set()
    blocks = await asyncio.gather(*waiting)
    assert make.calls == 1
    assert all(b is blocks[0] for b in blocks)
    assert await cache.get(b"k", make) is blocks[0]
    assert make.calls == 1


async def test_a_caller_that_goes_does_not_end_the_flight() -> None:
    cache, make = new_cache(), Maker()
    first, second = (asyncio.ensure_future(cache.get(b"k", make)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    make.go.set()
    assert (await second).name == "a"
    assert first.cancelled()


async def test_failures_are_remembered_until_their_time_is_up() -> None:
    now = [0.0]
    cache, make = new_cache(clock=lambda: now[0]), Maker(error=InvalidRequest("no", "f"))
    make.go.set()
    for _ in range(3):
        with pytest.raises(InvalidRequest, match="no") as caught:
            await cache.get(b"k", make)
        assert caught.value is not make.error
    assert make.calls == 1
    now[0] = 60.0
    with pytest.raises(InvalidRequest):
        await cache.get(b"k", make)
    assert make.calls == 2


async def test_bugs_are_not_remembered() -> None:
    cache, make = new_cache(), Maker(error=RuntimeError("bug"))
    make.go.set()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            await cache.get(b"k", make)
    assert make.calls == 2


async def test_the_least_recently_used_goes_first() -> None:
    cache = new_cache(max_bytes=30)
    makers = {name: Maker(name) for name in "abcd"}
    for maker in makers.values():
        maker.go.set()
    for name in "abcad":
        await cache.get(name.encode(), makers[name])
    for name in "acdb":
        await cache.get(name.encode(), makers[name])
    assert {n: m.calls for n, m in makers.items()} == {"a": 1, "b": 2, "c": 1, "d": 1}


async def test_entries_are_bounded_too() -> None:
    cache, make = new_cache(max_entries=2), Maker(error=InvalidRequest("no"))
    make.go.set()
    for key in (b"1", b"2", b"3", b"1"):
        with pytest.raises(InvalidRequest):
            await cache.get(key, make)
    assert make.calls == 4


async def test_cancel_ends_flights_with_an_error() -> None:
    cache, make = new_cache(), Maker()
    waiting = asyncio.ensure_future(cache.get(b"k", make))
    await asyncio.sleep(0)
    cache.cancel()
    with pytest.raises(Unavailable):
        await waiting


async def test_a_flight_that_everybody_left_ends_and_the_next_caller_has_its_own() -> None:
    cache, make = new_cache(), Maker()
    callers = [asyncio.ensure_future(cache.get(b"k", make)) for _ in range(2)]
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.sleep(0)
    make.go.set()
    assert (await cache.get(b"k", make)).name == "a"
    assert make.calls == 2
    assert [caller.cancelled() for caller in callers] == [True, True]


async def test_failures_drop_no_values() -> None:
    """As many as the limit of values: all good guides were compiled again."""
    cache, good, bad = new_cache(max_entries=2), Maker(), Maker(error=InvalidRequest("no"))
    good.go.set()
    bad.go.set()
    await cache.get(b"good", good)
    for number in range(10):
        with pytest.raises(InvalidRequest):
            await cache.get(b"bad %d" % number, bad)
    assert (await cache.get(b"good", good)).name == "a"
    assert good.calls == 1


async def test_values_in_use_count_until_their_last_user_has_gone() -> None:
    cache = new_cache(max_bytes=30)
    makers = [Maker(str(i)) for i in range(4)]
    for maker in makers:
        maker.go.set()
    users = [await cache.get(b"%d" % i, makers[i]) for i in range(3)]
    with pytest.raises(QueueFull, match="guides of open requests hold"):
        await cache.get(b"3", makers[3])
    assert cache.nbytes == 30
    users.pop()
    assert cache.nbytes == 20
    assert (await cache.get(b"3", makers[3])).name == "3"
    users.clear()
    assert cache.nbytes == 10  # what is kept for the next


async def test_a_better_value_takes_the_place_of_one_that_is_still_there() -> None:
    cache, make = new_cache(max_bytes=30), Maker()
    make.go.set()
    cache.put(b"k", Block("nobody asked"))
    assert cache.nbytes == 0
    await cache.get(b"k", make)
    cache.put(b"k", Block("better", 20))
    assert (await cache.get(b"k", make)).name == "better"
    await asyncio.sleep(0)  # the flight's task has gone
    assert cache.nbytes == 20
    cache.put(b"k", Block("too large", 20))
    assert (await cache.get(b"k", make)).name == "better"


async def test_a_full_queue_is_not_remembered() -> None:
    cache, make = new_cache(), Maker(error=QueueFull("later"))
    make.go.set()
    with pytest.raises(QueueFull):
        await cache.get(b"k", make)
    make.error = None
    assert (await cache.get(b"k", make)).name == "a"
