"""What the tests of jobs share: what a hub reported, what a member was told, a connection that is no member's."""

from __future__ import annotations

import os
import queue
import socket
from pathlib import Path
from typing import Any

from briton.ranks.hub import Hub, JobFailure, LeaderExit
from briton.ranks.member import Member
from briton.ranks.messages import encode

ROOT = Path(__file__).parents[2]
HOST = socket.gethostname()


def environment(**variables: str) -> dict[str, str]:
    """This process's, for a program that imports this project."""
    path = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    return {**os.environ, "PYTHONPATH": path, **variables}


class Events:
    """What a hub has reported, in order."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[JobFailure | LeaderExit] = queue.SimpleQueue()
        self.put = self._queue.put

    def next(self, timeout_s: float = 5.0) -> JobFailure | LeaderExit:
        """The next one. Raises queue.Empty when none comes in time."""
        return self._queue.get(timeout=timeout_s)

    def failure(self, timeout_s: float = 5.0) -> JobFailure:
        """The next one, which must be a failure."""
        event = self.next(timeout_s)
        assert isinstance(event, JobFailure), event
        return event

    def assert_none(self, seconds: float = 0.4) -> None:
        """Nothing comes for some beats."""
        try:
            event = self.next(seconds)
        except queue.Empty:
            return
        raise AssertionError(event)


class Joined:
    """A member in this process, and what it is told."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.aborts: list[str] = []
        self.drains: list[None] = []
        member.on_abort = self.aborts.append
        member.on_drain = lambda: self.drains.append(None)


def end(member: Member) -> None:
    """Leave, and wait for the thread: a rank's process would end."""
    member.leave()
    member._thread.join(5)
    member._socket.close()


def connect(hub: Hub) -> socket.socket:
    """A connection to a hub."""
    connection = socket.create_connection(("127.0.0.1", hub.address.port), timeout=5)
    connection.settimeout(5)
    return connection


def introduce(hub: Hub, rank: int, **changes: Any) -> socket.socket:
    """A connection that has introduced itself as a rank, and says no more by itself."""
    connection = connect(hub)
    hello = {"token": hub.address.token, "rank": rank, "host": "elsewhere", "process": ["", 0, ""]}
    connection.sendall(encode("hello", **{**hello, **changes}))
    return connection


def beat(*, phase: str = "idle", seconds: float = 0.0, serving: bool = True) -> bytes:
    """What a member says of itself."""
    return encode("beat", progress=[phase, seconds, 1, 0.0], serving=serving, stats={})


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side closes the connection, in a moment."""
    try:
        while connection.recv(1 << 16):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True
