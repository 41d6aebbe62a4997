"""Runs the ranks of an engine as one job: starts them, passes signals on, and leaves none behind however it ends."""

from __future__ import annotations

import contextlib
import logging
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

import psutil

from briton.errors import EXIT_CONFIG_ERROR, BritonError, ConfigError
from briton.ranks.hub import Hub, JobFailure, LeaderExit

logger = logging.getLogger(__name__)

JOB_VARIABLE = "BRITON_JOB"  # where ranks find the hub; read by `briton.config.environment`
_FAREWELL_S = 4.0  # after a failure, for rank 0 to tell its clients; after rank 0's departure, for the others to follow
_LAST_S = 0.2  # after a failure and rank 0's end: for the others to end by themselves


@dataclass(frozen=True, slots=True)
class _Exit:
    """mpiexec has ended."""

    code: int


class Launcher:
    """One job. `run` blocks until it has ended."""

    def __init__(
        self, command: Sequence[str], size: int, environ: Mapping[str, str], *, is_local: bool = False
    ) -> None:
        """`command` starts `size` ranks; they get `environ`, and the hub's address in JOB_VARIABLE. `is_local`: all of
        them on this host."""
        self._command = list(command)
        self._environ = environ
        self._events: queue.SimpleQueue[_Exit | JobFailure | LeaderExit | int] = queue.SimpleQueue()
        self._hub = Hub(size, self._events.put, is_local=is_local)

    def run(self) -> int:
        """0 after a drain. Raises BritonError, or ConfigError where a rank did, with the reason.

        SIGTERM and SIGINT ask rank 0 to drain, and the second of them to cut it short.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._hub.start()
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            env={**self._environ, JOB_VARIABLE: str(self._hub.address)},
            start_new_session=True,  # Ctrl-C is ours to pass on
        )
        mpiexec = _running(process.pid)
        threading.Thread(target=lambda: self._events.put(_Exit(process.wait())), name="mpiexec", daemon=True).start()
        try:
            return self._await_end(process.pid)
        finally:
            self._end(process, mpiexec)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._events.put(signum)

    def _await_end(self, pid: int) -> int:
        failure: JobFailure | None = None
        is_leaving = False  # rank 0 has left, or was told to before it came
        deadline: float | None = None
        while True:
            try:
                event = self._events.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
            except queue.Empty:  # whatever is still there will not go by itself
                if failure is not None:
                    raise _error(failure) from None
                return 0
            if isinstance(event, _Exit):
                if is_leaving:
                    return 0
                if failure is None:
                    failure = self._late_failure() or JobFailure(
                        f"mpiexec (pid {pid}) ended with exit code {event.code}"
                    )
                raise _error(failure)
            if isinstance(event, JobFailure):
                failure = failure or event
                logger.error("the job has failed: %s", failure.message)
                is_mute = failure.rank == 0  # it tells nobody anything
                deadline = deadline or time.monotonic() + (0.0 if is_mute else _FAREWELL_S)
            elif isinstance(event, LeaderExit):
                is_leaving = failure is None
                deadline = time.monotonic() + (_FAREWELL_S if is_leaving else _LAST_S)
            elif not self._hub.drain():
                is_leaving, deadline = True, time.monotonic()

    def _late_failure(self) -> JobFailure | None:
        """What the hub says of an end that mpiexec noticed first."""
        deadline = time.monotonic() + 1.0
        while (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                event = self._events.get(timeout=left)
                if isinstance(event, JobFailure):
                    return event
        return None

    def _end(self, process: subprocess.Popen[bytes], mpiexec: psutil.Process | None) -> None:
        """End everything that the job has started on this host. Other hosts' ranks end when the hub does. mpiexec may
        have ended long ago, and its number be another's: psutil knows it by its start, too, and so its children."""
        ranks = self._hub.processes()  # asked first: the hub forgets who has ended
        started: list[psutil.Process] = []
        if mpiexec is not None:
            with contextlib.suppress(psutil.Error):
                started = [mpiexec, *mpiexec.children(recursive=True)]
        for one in started:
            with contextlib.suppress(psutil.Error):
                one.kill()
        for rank in ranks:
            rank.kill()
        process.wait()
        self._hub.close()


def _running(pid: int) -> psutil.Process | None:
    """A child of ours, that may have ended already."""
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def _error(failure: JobFailure) -> BritonError:
    return ConfigError(failure.message) if failure.exit_code == EXIT_CONFIG_ERROR else BritonError(failure.message)
