"""The parent's end of the compile worker: one warm child process, killed when a compile passes its limits."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe
from typing import Any, Literal

from briton.config.environment import child_variables
from briton.errors import BritonError, InvalidRequest, Unavailable, Unsupported
from briton.guidance.compile_answer import DONE, UNSUPPORTED, MalformedAnswer, decode_answer
from briton.guidance.compile_worker import OUT_OF_MEMORY
from briton.guidance.limits import GuideLimits
from briton.guidance.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 120.0
_EXIT_TIMEOUT_S = 1.0
# How a process ends when memory is refused: Python's MemoryError, Rust's abort, the kernel.
_MEMORY_EXITS = (OUT_OF_MEMORY, -signal.SIGABRT, -signal.SIGKILL, -signal.SIGSEGV)


class CompileProcess:
    """Compiles texts in a child process: schemas and regexes to grammars, or regexes to tables. Blocking, one at a
    time, from any thread.

    The child is a new interpreter, started by the first text; never a bare fork: this process has gRPC's threads.
    """

    def __init__(self, kind: Literal["grammar", "tables"], vocabulary: Vocabulary, limits: GuideLimits) -> None:
        self._kind = kind
        self._vocabulary = vocabulary
        self._limits = limits
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The child, when there is one."""
        return self._child.pid if self._child is not None else None

    def compile(self, what: Literal["schema", "regex"], text: str, field: str) -> Any:
        """What the worker makes of a text. Raises InvalidRequest and Unsupported naming `field`, also past a limit."""
        with self._lock:
            connection = self._connection or self._start()
            try:
                connection.send_bytes(f"{what}\n{text}".encode("utf-8", "surrogatepass"))
                if not connection.poll(self._limits.compile_timeout_s):
                    raise self._too_slow(field)
                answer = self._receive(connection)
                outcome, content = decode_answer(answer, self._vocabulary.num_words)
            except (EOFError, OSError):
                raise self._died(field) from None
            except MalformedAnswer as error:
                raise self._malformed(field, error) from None
        if outcome == DONE:
            return content
        message = str(content) if str(content).startswith(field) else f"{field}: {content}"
        raise Unsupported(message, field) if outcome == UNSUPPORTED else InvalidRequest(message, field)

    def _receive(self, connection: Connection) -> bytes:
        """An answer that has begun. A child that does not end it is killed: EOFError, as when it dies by itself."""
        child = self._child
        assert child is not None
        with _killed_after(self._limits.compile_timeout_s, child):
            return connection.recv_bytes(self._limits.compile_memory_bytes)  # it cannot hold more

    def close(self) -> None:
        """Kill the child, also in the middle of a compile. Idempotent."""
        self._closed = True
        child = self._child
        if child is not None:
            child.kill()
        with self._lock:
            self._end_child()

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        arguments = (theirs.fileno(), self._limits.compile_memory_bytes, self._limits.compile_timeout_s)
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "briton.guidance.compile_worker", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=child_variables(),
            )
        self._connection = ours
        setup = {
            "token_bytes": self._vocabulary.token_bytes,
            "stop_token_ids": self._vocabulary.stop_token_ids,
            "limits": self._limits,
        }
        try:
            if self._closed:
                raise EOFError
            ours.send((self._kind, setup))
            if not ours.poll(_START_TIMEOUT_S):
                raise EOFError
            ours.recv_bytes(0)
        except (EOFError, OSError):
            exit_code = self._end_child()
            if self._closed:
                raise Unavailable("the guide compiler is closed") from None
            raise BritonError(f"the compile worker did not start: exit code {exit_code}") from None
        logger.debug("compile worker for %s started: %d", self._kind, self._child.pid)
        return ours

    def _end_child(self) -> int | None:
        """Kill the child and forget it; its exit code."""
        child, connection = self._child, self._connection
        self._child = self._connection = None
        if connection is not None:
            connection.close()
        if child is None:
            return None
        child.kill()  # a no-op when it has ended
        return child.wait()

    def _too_slow(self, field: str) -> InvalidRequest:
        self._end_child()
        limit = self._limits.compile_timeout_s
        return InvalidRequest(f"{field}: compiling took longer than {limit:g} s: simplify it", field)

    def _died(self, field: str) -> BritonError:
        """Why the child closed its end."""
        child = self._child
        try:
            exit_code = child.wait(_EXIT_TIMEOUT_S) if child is not None else None
        except subprocess.TimeoutExpired:
            exit_code = None
        self._end_child()
        if self._closed:
            return Unavailable("the guide compiler is closed")
        if exit_code == -signal.SIGXCPU:
            return self._too_slow(field)
        logger.warning("the compile worker for %s ended with exit code %s", self._kind, exit_code)
        if exit_code not in _MEMORY_EXITS:
            return _failed(field)
        limit = self._limits.compile_memory_bytes >> 20
        return InvalidRequest(f"{field}: compiling needs more than {limit} MiB: simplify it", field)

    def _malformed(self, field: str, error: MalformedAnswer) -> InvalidRequest:
        self._end_child()
        logger.warning("the compile worker for %s gave a malformed answer: %s", self._kind, error)
        return _failed(field)


@contextmanager
def _killed_after(seconds: float, child: subprocess.Popen[bytes]) -> Iterator[None]:
    timer = threading.Timer(seconds, child.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _failed(field: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: the compiler failed on it: simplify it", field)
