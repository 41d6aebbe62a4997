"""The parent's end of the regex worker: one warm child process, killed when a compile passes its limits."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from multiprocessing.connection import Connection, Pipe

from briton.errors import BritonError, InvalidRequest, Unavailable
from briton.guidance.automaton import AutomatonArrays
from briton.guidance.limits import GuideLimits
from briton.guidance.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 60.0


class RegexProcess:
    """Compiles patterns in a child process. Blocking, one at a time, from any thread.

    The child is a new interpreter, started by the first pattern; never a bare fork: this process has gRPC's threads.
    """

    def __init__(self, vocabulary: Vocabulary, limits: GuideLimits) -> None:
        self._vocabulary = vocabulary
        self._limits = limits
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._closed = False

    def compile(self, pattern: str, field: str) -> AutomatonArrays:
        """The automaton of a pattern. Raises InvalidRequest naming `field` when it is wrong or passes a limit."""
        with self._lock:
            connection = self._connection or self._start()
            try:
                connection.send(pattern)
                if not connection.poll(self._limits.compile_timeout_s):
                    self._kill()
                    raise self._too_slow(field)
                answer: AutomatonArrays | str = connection.recv()
            except (EOFError, OSError):
                raise self._died(field) from None
        if isinstance(answer, str):
            raise InvalidRequest(f"{field}: {answer}", field)
        return answer

    def close(self) -> None:
        """Kill the child, also in the middle of a compile. Idempotent."""
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()
        with self._lock:
            self._kill()

    def _start(self) -> Connection:
        if self._closed:
            raise Unavailable("the guide compiler is closed")
        ours, theirs = Pipe()
        limits = self._limits
        arguments = (theirs.fileno(), limits.compile_memory_bytes, limits.compile_timeout_s)
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "briton.guidance.regex_worker", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._connection = ours
        try:
            vocabulary = self._vocabulary
            ours.send((vocabulary.token_bytes, vocabulary.stop_token_ids, limits.max_guide_bytes))
            if not ours.poll(_START_TIMEOUT_S):
                raise EOFError
            ours.recv()
        except (EOFError, OSError):
            returncode = self._kill()
            raise BritonError(f"the regex worker did not start: exit code {returncode}") from None
        logger.debug("regex worker %d started", self._child.pid)
        return ours

    def _kill(self) -> int | None:
        """End the child and forget it; its return code."""
        child, connection = self._child, self._connection
        self._child = self._connection = None
        if connection is not None:
            connection.close()
        if child is None:
            return None
        child.kill()  # a no-op when it has ended
        return child.wait()

    def _too_slow(self, field: str) -> InvalidRequest:
        return InvalidRequest(
            f"{field}: compiling took longer than {self._limits.compile_timeout_s:g} s: simplify it", field
        )

    def _died(self, field: str) -> BritonError:
        """Why the child closed its end."""
        child = self._child
        try:
            returncode = child.wait(1.0) if child is not None else None
        except subprocess.TimeoutExpired:
            returncode = None
        self._kill()
        if self._closed:
            return Unavailable("the guide compiler is closed")
        if returncode == -signal.SIGXCPU:
            return self._too_slow(field)
        logger.warning("the regex worker ended with exit code %s", returncode)
        return InvalidRequest(
            f"{field}: compiling needs more than {self._limits.compile_memory_bytes >> 20} MiB: simplify it", field
        )
