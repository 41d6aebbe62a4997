"""One compile for each key, however many ask for it at once; what came of it is kept, failures for a while."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
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
    """Least recently used values by key, for one event loop."""

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
        self._done: OrderedDict[bytes, T | _Failure] = OrderedDict()
        self._flights: dict[bytes, _Flight[T]] = {}
        self._nbytes = 0

    async def get(self, key: bytes, make: Callable[[], Awaitable[T]]) -> T:
        """The value of `key`, made by `make` when it is not there. Raises what `make` raises.

        A caller that is cancelled does not cancel the others' flight; the last one does. Only BritonErrors that say
        something about the key are remembered.
        """
        done = self._lookup(key)
        if isinstance(done, _Failure):
            raise replace(done.error)  # an error that is raised twice would collect both tracebacks
        if done is not None:
            return done
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

    def forget(self, key: bytes) -> None:
        """Drop a value that has gone bad."""
        dropped = self._done.pop(key, None)
        if dropped is not None and not isinstance(dropped, _Failure):
            self._nbytes -= dropped.nbytes

    def cancel(self) -> None:
        """End all flights: who waits for one gets Unavailable."""
        for flight in self._flights.values():
            flight.task.cancel()

    def _end(self, key: bytes, flight: _Flight[T]) -> None:
        """Cancel a flight that nobody may join any more: the next caller starts one of its own."""
        if self._flights.get(key) is flight:
            del self._flights[key]
        flight.task.cancel()

    def _lookup(self, key: bytes) -> T | _Failure | None:
        done = self._done.get(key)
        if done is None:
            return None
        if isinstance(done, _Failure) and self._clock() >= done.until:
            self.forget(key)
            return None
        self._done.move_to_end(key)
        return done

    async def _fly(self, key: bytes, make: Callable[[], Awaitable[T]]) -> T:
        try:
            value = await make()
        except (QueueFull, Unavailable):
            raise
        except BritonError as error:
            self._keep(key, _Failure(replace(error), self._clock() + self._failure_ttl_s))
            raise
        else:
            self._keep(key, value)
            return value
        finally:
            flight = self._flights.get(key)
            if flight is not None and flight.task is asyncio.current_task():
                del self._flights[key]

    def _keep(self, key: bytes, done: T | _Failure) -> None:
        self.forget(key)
        self._done[key] = done
        if not isinstance(done, _Failure):
            self._nbytes += done.nbytes
        while self._nbytes > self._max_bytes or len(self._done) > self._max_entries:
            self.forget(next(iter(self._done)))


def _retrieve(flight: asyncio.Task[T]) -> None:
    """Mark a flight's error as seen, for when every caller has gone."""
    if not flight.cancelled():
        flight.exception()
