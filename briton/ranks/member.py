"""A rank's side of the hub: it says that the rank lives, and hears when the job is over.

Its thread shares nothing with the threads that compute but the interpreter's lock, so it speaks while they wait for
other ranks, and is silent only when the whole process is stopped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from briton.engine.types import RankStats
from briton.errors import BritonError
from briton.ranks.failure_rules import LOADING_SILENCE_S, SILENCE_S
from briton.ranks.memory import proportional_set_size
from briton.ranks.messages import BEAT_S, HubAddress, Lines, encode
from briton.ranks.process_id import ProcessId
from briton.ranks.progress import Progress

logger = logging.getLogger(__name__)

_CONNECT_S = 3.0  # for each of the hub's addresses
_MEASURE_S = 5.0  # between two measurements of memory


class Member:
    """One rank's connection to its hub. `on_abort(reason)` and, on rank 0, `on_drain()` are called from its thread; as
    long as nobody has set them they end the process."""

    def __init__(self, address: HubAddress, rank: int) -> None:
        """Connect, and start the thread. Raises BritonError when no hub answers."""
        self.rank = rank
        self.host = socket.gethostname()  # for messages only
        self.progress = Progress()  # written by the thread that runs the model
        self.on_abort: Callable[[str], None] = _leave
        self.on_drain: Callable[[], None] = self._depart if rank == 0 else _ignore
        self.own_stats: Callable[[], RankStats] = lambda: RankStats(rank)
        self.is_serving = False
        self._loading_silence_s = LOADING_SILENCE_S
        self._pss = 0  # bytes
        self._all_stats: list[dict[str, Any]] = []
        self._others: list[ProcessId] = []
        self._lock = threading.Lock()  # of the socket
        self._left = False
        self._measured_at = -_MEASURE_S
        self._socket = _connect(address)
        self._lines = Lines(self._socket)
        process = ProcessId.of(os.getpid())
        self._say(encode("hello", token=address.token, rank=rank, host=self.host, process=process))
        self._thread = threading.Thread(target=self._run, name="job member", daemon=True)
        self._thread.start()

    def all_stats(self) -> tuple[RankStats, ...]:
        """What every rank last said of itself, by rank. From any thread."""
        return tuple(RankStats(**fields) for fields in self._all_stats)

    def fail(self, message: str, exit_code: int = 1) -> None:
        """Tell the hub that this rank cannot go on; the job ends."""
        self._say(encode("failed", message=message, exit_code=exit_code))

    def expect_silence(self, seconds: float) -> None:
        """This rank may say nothing for so long while it loads; and neither may the hub, where a rank has it."""
        self._loading_silence_s = seconds
        self._say(encode("loading", silence_s=seconds))

    def serve(self) -> None:
        """This rank has loaded its part: from now on its silence is soon noticed. Told at once: a rank that is cut off
        before it has said so is taken for one that loads."""
        self.is_serving = True
        self._measured_at = -_MEASURE_S  # what it holds now is news
        self._beat()

    def leave(self) -> None:
        """This rank is done, as it should be: nobody is to be alarmed when it ends. Idempotent."""
        if not self._left:
            self._left = True
            self._say(encode("farewell"))

    def _say(self, data: bytes) -> None:
        with self._lock, contextlib.suppress(OSError):
            self._socket.sendall(data)

    def _run(self) -> None:
        next_beat = heard_at = seen = time.monotonic()
        while not self._left:
            try:
                if select.select([self._socket], [], [], BEAT_S / 2)[0]:
                    for message in self._lines.receive():
                        self._handle(message)
                    heard_at = time.monotonic()
            except OSError as error:
                if not self._left:
                    self._lost(f"the job's hub is gone: {error}")
                return
            now = time.monotonic()
            heard_at = now if now - seen > BEAT_S * 4 else heard_at  # this process was stopped itself
            seen = now
            if now - heard_at > (SILENCE_S if self.is_serving else self._loading_silence_s):
                self._lost(f"the job's hub has not been heard of for {now - heard_at:.1f} s")
                return
            if now - self._measured_at > _MEASURE_S:
                self._measured_at, self._pss = now, proportional_set_size()
            if now >= next_beat:
                next_beat = now + BEAT_S
                self._beat()

    def _beat(self) -> None:
        phase, *numbers = self.progress.snapshot()
        stats = {**asdict(self.own_stats()), "host": self.host, "pid": os.getpid(), "pss_bytes": self._pss}
        self._say(encode("beat", progress=[phase.value, *numbers], serving=self.is_serving, stats=stats))

    def _handle(self, message: dict[str, Any]) -> None:
        match message["kind"]:
            case "beat":
                self._all_stats = message["stats"]
                self._others = [ProcessId(*fields) for rank, *fields in message["processes"] if rank != self.rank]
            case "abort":
                self._left = True  # what follows is the end of the connection
                self.on_abort(str(message["message"]))
            case "drain":
                self.on_drain()

    def _depart(self) -> None:
        """The end of rank 0 before it serves: there is nothing to drain."""
        self.leave()
        logging.shutdown()
        os._exit(0)

    def _lost(self, reason: str) -> None:
        """Without a hub nobody ends a rank that is stopped: those of this host are ended here."""
        for process in self._others:
            process.kill()
        self._socket.close()
        self.on_abort(reason)


def _ignore() -> None:
    """Rank 0 drains; the others follow it."""


def _leave(reason: str) -> None:
    """The end of a rank that nobody waits for."""
    logger.error("this rank ends: %s", reason)
    logging.shutdown()
    os._exit(1)


def _connect(address: HubAddress) -> socket.socket:
    errors = []
    for host in address.hosts:
        try:
            connection = socket.create_connection((host, address.port), timeout=_CONNECT_S)
        except OSError as error:
            errors.append(f"{host}: {error.strerror or error}")
            continue
        connection.settimeout(SILENCE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    raise BritonError(f"the job's hub cannot be reached on port {address.port}: {'; '.join(errors)}")
