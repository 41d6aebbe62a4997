"""One compile for each key, however many ask for it at once; what came of it is kept, failures for a while."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from briton.errors import BritonError, QueueFull, Unavailable


class Sized(Protocol):
    """What the cache holds."""

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        ...

    @property
    def memory(self) -> object:
        """What holds it: whoever uses the value, or a copy of it, has a reference."""
        ...


T = TypeVar("T", bound=Sized)


@dataclass(slots=True)
class _Flight(Generic[T]):
    task: asyncio.Task[T]
    num_waiting: int = 0


@dataclass(frozen=True, slots=True)
class _Failure:
    error: BritonError
    until: float  # by the cache's clock


class SingleFlightCache(Generic[T]):
    """Least recently used values by key, for one event loop.

    `max_bytes` are of all that is in use: values that were dropped here count until the last that uses them has ended.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        max_entries: int,
        failure_ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._failure_ttl_s = failure_ttl_s
        self._clock = clock
        self._values: OrderedDict[bytes, T] = OrderedDict()
        self._failures: OrderedDict[bytes, _Failure] = OrderedDict()
        self._flights: dict[bytes, _Flight[T]] = {}
        self._held = 0
        self._released: deque[int] = deque()  # sizes, by whichever thread let go last

    @property
    def nbytes(self) -> int:
        """Memory held by values that are kept here or in use elsewhere."""
        while self._released:
            self._held -= self._released.popleft()
        return self._held

    async def get(self, key: bytes, make: Callable[[], Awaitable[T]]) -> T:
        """The value of `key`, made by `make` when it is not there. Raises what `make` raises.

        A caller that is cancelled does not cancel the others' flight; the last one does. Only BritonErrors that say
        something about the key are remembered. QueueFull when values in use leave no room for this one.
        """
        failure = self._failures.get(key)
        if failure is not None and self._clock() < failure.until:
            raise replace(failure.error)  # an error that is raised twice would collect both tracebacks
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        flight = self._flights.get(key)
        if flight is None:
            flight = _Flight(asyncio.ensure_future(self._fly(key, make)))
            self._flights[key] = flight
            flight.task.add_done_callback(_retrieve)
        flight.num_waiting += 1
        try:
            return await asyncio.shield(flight.task)
        except BritonError as error:
            raise replace(error) from None
        except asyncio.CancelledError:
            if flight.task.cancelled():  # by cancel(), not by this caller
                raise Unavailable("shutting down") from None
            if flight.num_waiting == 1:  # nobody else: what is abandoned must not keep others waiting
                self._end(key, flight)
            raise
        finally:
            flight.num_waiting -= 1

    def put(self, key: bytes, value: T) -> None:
        """Take a better value for a key that is still here; without room, the old one stays."""
        if key in self._values and value.nbytes + self.nbytes <= self._max_bytes:
            self._keep(key, value)

    def forget(self, key: bytes) -> None:
        """Drop a value that has gone bad."""
        self._values.pop(key, None)

    def cancel(self) -> None:
        """End all flights: who waits for one gets Unavailable."""
        for flight in self._flights.values():
            flight.task.cancel()

    def _end(self, key: bytes, flight: _Flight[T]) -> None:
        """Cancel a flight that nobody may join any more: the next caller starts one of its own."""
        if self._flights.get(key) is flight:
            del self._flights[key]
        flight.task.cancel()

    async def _fly(self, key: bytes, make: Callable[[], Awaitable[T]]) -> T:
        try:
            value = await make()
        except (QueueFull, Unavailable):
            raise
        except BritonError as error:
            self._remember(key, error)
            raise
        else:
            self._make_room(value.nbytes)
            self._keep(key, value)
            return value
        finally:
            flight = self._flights.get(key)
            if flight is not None and flight.task is asyncio.current_task():
                del self._flights[key]

    def _make_room(self, nbytes: int) -> None:
        """Drop values until so many bytes are left. Raises QueueFull where those in use are too many."""
        while self.nbytes + nbytes > self._max_bytes and self._values:
            self._values.popitem(last=False)
        held = self.nbytes
        if held and held + nbytes > self._max_bytes:
            raise QueueFull(f"guides of open requests hold {held >> 20} MiB; the limit is {self._max_bytes >> 20}")

    def _keep(self, key: bytes, value: T) -> None:
        self._held += value.nbytes
        weakref.finalize(value.memory, self._released.append, value.nbytes).atexit = False
        self._failures.pop(key, None)
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._max_entries:
            self._values.popitem(last=False)

    def _remember(self, key: bytes, error: BritonError) -> None:
        self._failures[key] = _Failure(replace(error), self._clock() + self._failure_ttl_s)
        self._failures.move_to_end(key)
        if len(self._failures) > self._max_entries:
            self._failures.popitem(last=False)


def _retrieve(flight: asyncio.Task[T]) -> None:
    """Mark a flight's error as seen, for when every caller has gone."""
    if not flight.cancelled():
        flight.exception()
