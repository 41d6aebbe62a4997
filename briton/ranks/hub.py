"""The hub of a job: every rank's member tells it four times a second that it lives, and where it is.

It decides alone when a job has failed, and then says so to every member; what follows is the business of whoever
started it. A rank whose connection ends without a farewell is dead; the rest is `failure_rules.find_failure`.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil

from briton.ranks.failure_rules import LOADING_SILENCE_S, RankState, find_failure, name
from briton.ranks.messages import BEAT_S, HubAddress, Lines, encode
from briton.ranks.process_id import ProcessId
from briton.ranks.progress import Phase, Progress, Snapshot

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 60.0  # what all ranks have to appear
_INTRODUCTION_S = 10.0  # what a connection has to say which rank it is, which a rank does at once
_MAX_LAG_S = 1.0  # a hub that was itself stopped for so long starts its clocks anew


@dataclass(frozen=True, slots=True)
class JobFailure:
    """Why a job has failed: one sentence, and the exit code of the command."""

    message: str
    exit_code: int = 1
    rank: int | None = None  # whose fault it is, where it is one rank's


@dataclass(frozen=True, slots=True)
class LeaderExit:
    """Rank 0 has left, as it should or after a failure: nothing is left to wait for."""


_NO_PROCESS = ProcessId("", 0, "")


@dataclass(eq=False, slots=True)
class _Connection:
    socket: socket.socket
    lines: Lines
    rank: int | None = None  # None until it has introduced itself
    host: str = ""
    process: ProcessId = _NO_PROCESS
    connected_at: float = 0.0
    heard_at: float = 0.0
    unsent: bytes = b""
    is_serving: bool = False
    loading_silence_s: float = LOADING_SILENCE_S
    progress: Snapshot = field(default_factory=Progress().snapshot)
    stats: dict[str, Any] = field(default_factory=dict)


class Hub:
    """Listens for `size` ranks; its thread runs from `start` to `close`."""

    def __init__(
        self,
        size: int,
        on_event: Callable[[JobFailure | LeaderExit], None],
        *,
        is_local: bool = False,
        join_timeout_s: float = JOIN_TIMEOUT_S,
    ) -> None:
        """`on_event` is called from the hub's thread: once for a failure, when the members have been told; and when
        rank 0 leaves. `is_local`: all ranks are on this host, and nobody else is to reach the hub."""
        self._size = size
        self._on_event = on_event
        self._listener = socket.create_server(("127.0.0.1" if is_local else "", 0), backlog=size + 8)
        self._listener.setblocking(False)
        self.address = HubAddress(
            ("127.0.0.1",) if is_local else _own_addresses(), self._listener.getsockname()[1], secrets.token_hex(16)
        )
        self._connections: list[_Connection] = []
        self._gone: set[int] = set()  # ranks that have said farewell
        self._outbox: list[bytes] = []  # for all members
        self._lock = threading.Lock()
        self._failure: JobFailure | None = None
        self._closing = False
        self._deadline = time.monotonic() + join_timeout_s
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="job hub", daemon=True)

    def start(self) -> None:
        """Start the thread. The time that ranks have to appear counts from the hub's making."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening; members that are still there take it for the job's end."""
        self._closing = True
        self._thread.join(timeout=2.0)

    def drain(self) -> bool:
        """Ask rank 0 to drain; a second time, to cut it short. False when there is no rank 0 yet. From any thread."""
        if not any(connection.rank == 0 for connection in list(self._connections)):
            return False
        with self._lock:
            self._outbox.append(encode("drain"))
        return True

    def processes(self) -> list[ProcessId]:
        """Those of the ranks that are connected, on whatever host. From any thread."""
        return [c.process for c in list(self._connections) if c.rank is not None]

    def _run(self) -> None:
        next_beat = seen = time.monotonic()
        while not self._closing:
            for key, _ in self._selector.select(timeout=BEAT_S / 2):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._receive(key.data)
            now = time.monotonic()
            if now - seen > _MAX_LAG_S:  # this process was stopped, or starved: what members said lies in the sockets
                self._restart_clocks(now)
            seen = now
            self._drop_strangers(now)
            with self._lock:
                messages, self._outbox = self._outbox, []
            if now >= next_beat:
                next_beat = now + BEAT_S
                messages.append(self._beat())
            self._send(b"".join(messages))
            self._check_ranks(now)
        for connection in self._connections:
            connection.socket.close()
        self._listener.close()
        self._selector.close()

    def _beat(self) -> bytes:
        members = [c for c in self._connections if c.rank is not None]
        return encode(
            "beat",
            processes=[[c.rank, *c.process] for c in members],
            stats=[c.stats for c in sorted(members, key=lambda c: c.rank or 0) if c.stats],
        )

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            accepted, _ = self._listener.accept()
            accepted.setblocking(False)
            now = time.monotonic()
            connection = _Connection(accepted, Lines(accepted), connected_at=now, heard_at=now)
            self._connections.append(connection)
            self._selector.register(accepted, selectors.EVENT_READ, connection)

    def _receive(self, connection: _Connection) -> None:
        try:
            for message in connection.lines.receive():
                self._handle(connection, message)
        except BlockingIOError:
            return
        except (OSError, KeyError, TypeError, ValueError) as error:
            self._drop(connection)
            if connection.rank == 0 and self._failure is not None:
                self._on_event(LeaderExit())
            if connection.rank is not None and connection.rank not in self._gone:
                gone = f"{name(connection.rank, connection.host)} is gone"
                missing = self._missing() - {connection.rank}  # mpiexec, when it cannot start one, ends the others
                told = f", and rank {_listed(missing)} of {self._size} had not started" if missing else ""
                self._fail(JobFailure(gone + told, rank=connection.rank))
            elif connection.rank is None:
                logger.debug("a connection that was no rank's: %s", error)

    def _handle(self, connection: _Connection, message: dict[str, Any]) -> None:
        connection.heard_at = time.monotonic()
        kind = message["kind"]
        if connection.rank is None:
            if kind != "hello" or not hmac.compare_digest(str(message["token"]), self.address.token):
                raise ConnectionError("a stranger")
            connection.host = str(message["host"])
            space, pid, started = message["process"]
            connection.process = ProcessId(str(space), int(pid), str(started))
            connection.rank = int(message["rank"])
            logger.info("%s has joined, pid %d", name(connection.rank, connection.host), connection.process.pid)
        elif kind == "beat":
            phase, *numbers = message["progress"]
            connection.progress = Snapshot(Phase(phase), *numbers)
            connection.is_serving = bool(message["serving"])
            connection.stats = message["stats"]
        elif kind == "loading":
            connection.loading_silence_s = float(message["silence_s"])
        elif kind == "failed":
            failed = name(connection.rank, connection.host)
            self._fail(JobFailure(f"{failed}: {message['message']}", int(message["exit_code"]), connection.rank))
        elif kind == "farewell":
            self._gone.add(connection.rank)
            if connection.rank == 0:
                self._on_event(LeaderExit())

    def _check_ranks(self, now: float) -> None:
        if 0 in self._gone:
            return  # the job is ending: everybody leaves when it is done
        members = {c.rank: c for c in self._connections if c.rank is not None and c.rank not in self._gone}
        if missing := self._missing():
            if now > self._deadline:
                self._fail(JobFailure(f"rank {_listed(missing)} of {self._size} did not start in time"))
            return
        states = {
            rank: RankState(c.host, now - c.heard_at, c.is_serving, c.progress, c.loading_silence_s)
            for rank, c in sorted(members.items())
        }
        if failure := find_failure(states):
            self._fail(JobFailure(failure.message, rank=failure.rank))

    def _missing(self) -> set[int]:
        """Ranks that have not come yet."""
        return set(range(self._size)) - {connection.rank for connection in self._connections} - self._gone

    def _fail(self, failure: JobFailure) -> None:
        if self._failure is not None or 0 in self._gone:
            return
        self._failure = failure
        self._send(encode("abort", message=failure.message))
        self._on_event(failure)

    def _send(self, data: bytes) -> None:
        """A member that does not read is stopped, cut off or loading: its silence is judged, not its full socket, and
        what it has not taken waits."""
        for connection in self._connections:
            if connection.rank is not None:
                connection.unsent += data
                with contextlib.suppress(OSError):
                    connection.unsent = connection.unsent[connection.socket.send(connection.unsent) :]

    def _drop_strangers(self, now: float) -> None:
        """A port scanner, say, connects and says nothing, or for ever a little: it would keep its file open here."""
        for connection in list(self._connections):
            if connection.rank is None and now - connection.connected_at > _INTRODUCTION_S:
                logger.debug("a connection that did not say in time which rank it is")
                self._drop(connection)

    def _restart_clocks(self, now: float) -> None:
        for connection in self._connections:
            connection.heard_at = now

    def _drop(self, connection: _Connection) -> None:
        self._selector.unregister(connection.socket)
        self._connections.remove(connection)
        connection.socket.close()


def _listed(ranks: set[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))


def _own_addresses() -> tuple[str, ...]:
    """This machine's addresses, those that other machines may reach first."""
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET
    ]
    return tuple(sorted(set(found), key=lambda address: (address.startswith("127."), found.index(address))))
