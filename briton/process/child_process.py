"""A child process of `briton serve`: started in its own session, its lines passed on, ended with all it started.

And the child's half of the bargain: it ends when its supervisor does, however that ended.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence

from briton.config.environment import child_variables
from briton.process.logs import is_routine

ERROR_PREFIX = "briton: error: "
_KEPT_LINES = 100


class ChildProcess:
    """A running program. `on_exit(self)` is called from a thread, once, after its end and its last line.

    Its own session keeps the terminal's Ctrl-C from it: the supervisor decides who stops when. Its standard input is
    a pipe that nothing is written to: when it closes, the supervisor is gone (see `end_with_supervisor`).
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        on_line: Callable[[str], None],
        on_exit: Callable[[ChildProcess], None],
        credentials: tuple[str, ...] = (),
    ) -> None:
        """Start `command`, with no secrets of the environment but those `credentials` (see `child_variables`).

        `on_line` gets each line of its output and errors, without the newline, from one thread.
        """
        self._on_line = on_line
        self._on_exit = on_exit
        self._last_lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            env=child_variables(credentials),
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._pass_lines, name=f"lines of {self.pid}", daemon=True)
        self._waiter = threading.Thread(target=self._wait_for_exit, name=f"exit of {self.pid}", daemon=True)
        self._reader.start()
        self._waiter.start()

    @property
    def returncode(self) -> int | None:
        """The exit code, minus the signal's number when a signal ended it, None while it runs."""
        return self._process.returncode

    def terminate(self) -> None:
        """Ask it to drain and end (SIGTERM). Its own children are its business."""
        self._process.terminate()

    def kill(self) -> None:
        """End it at once (SIGKILL), and all of its process group."""
        if self._process.returncode is None:
            self._kill_group()

    def join(self, timeout_s: float) -> None:
        """Wait until `on_exit` has been called, or the time is over."""
        self._waiter.join(timeout_s)

    def describe_exit(self) -> str:
        """How it ended, in words, with the line that says most about it, if there is one."""
        code = self.returncode
        if code is None:
            return "is running"
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        line = self._telling_line()
        return f"{how}: {line}" if line else how

    def _telling_line(self) -> str:
        lines = [line for line in self._last_lines if line.strip() and not is_routine(line)]
        told = [line.removeprefix(ERROR_PREFIX) for line in lines if line.startswith(ERROR_PREFIX)]
        return (told or lines or [""])[-1].strip()

    def _pass_lines(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                line = line.rstrip("\n")
                self._last_lines.append(line)
                self._on_line(line)

    def _wait_for_exit(self) -> None:
        self._process.wait()
        self._kill_group()  # what it started and left behind, which may hold the pipe that the reader reads
        self._reader.join(timeout=2.0)
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._on_exit(self)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


def end_with_supervisor() -> None:
    """In a child: start the thread that kills this process, and its group if it leads one, when standard input closes.

    A pipe rather than PR_SET_PDEATHSIG: that signal is sent when the parent's *thread* ends, is Linux only, and has a
    gap between the fork and the call. A pipe's end cannot be missed.
    """
    threading.Thread(target=_kill_at_end_of_input, name="supervisor watch", daemon=True).start()


def _kill_at_end_of_input() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
