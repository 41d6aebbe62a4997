"""The process that mpiexec sees in a rank's stead: when it ends, with what code, and that no rank outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import psutil
import pytest

from tests.processes import is_running, wait_until
from tests.ranks.conftest import StartProgram

# argv: outlive_s, what the rank does
PROGRAM = """
import os, signal, sys, time
from briton.ranks.rank_wrapper import fork_rank

fork_rank(float(sys.argv[1]))
what = sys.argv[2]
signal.signal(signal.SIGTERM, lambda *_: (print("SIGTERM", flush=True), os._exit(5)))
signal.signal(signal.SIGINT, lambda *_: (print("SIGINT", flush=True), os._exit(0)))
print(os.getpid(), os.getppid(), flush=True)
sys.stdin.readline()
if what.isdigit():
    sys.exit(int(what))
time.sleep(60)
"""


class Wrapped:
    """A rank under its wrapper."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.rank, self.wrapper = map(int, self.line().split())

    def line(self) -> str:
        """The next line that the rank prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go_on(self) -> None:
        """Let the rank do what it is to do."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


def start(start_program: StartProgram, what: str = "", outlive_s: float = 60.0) -> Wrapped:
    return Wrapped(start_program(PROGRAM, str(outlive_s), what))


def test_the_rank_is_a_child(start_program: StartProgram) -> None:
    wrapped = start(start_program)
    assert wrapped.wrapper == wrapped.process.pid != wrapped.rank


def test_a_good_end_is_passed_on_at_once(start_program: StartProgram) -> None:
    wrapped = start(start_program, "0")
    wrapped.go_on()
    assert wrapped.process.wait(5) == 0


@pytest.mark.timing
@pytest.mark.parametrize("code", [1, 2, 77])
def test_a_failed_rank_is_outlived(start_program: StartProgram, code: int) -> None:
    """Rank 0 gets the time to tell its clients: mpiexec ends everybody when it sees a process fail."""
    wrapped = start(start_program, str(code), outlive_s=0.5)
    wrapped.go_on()
    wait_until(lambda: not is_running(wrapped.rank))
    ended = time.monotonic()
    assert wrapped.process.poll() is None
    assert wrapped.process.wait(5) == code
    assert 0.4 < time.monotonic() - ended < 2


@pytest.mark.timing
def test_a_killed_rank_is_outlived_too(start_program: StartProgram) -> None:
    wrapped = start(start_program, outlive_s=0.5)
    killed = time.monotonic()
    os.kill(wrapped.rank, signal.SIGKILL)
    assert wrapped.process.wait(5) == 128 + signal.SIGKILL
    assert time.monotonic() - killed >= 0.5


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 5), (signal.SIGINT, 0)])
def test_signals_are_the_ranks(start_program: StartProgram, number: signal.Signals, code: int) -> None:
    wrapped = start(start_program, outlive_s=0.1)
    wait_until(lambda: psutil.Process(wrapped.wrapper).status() == psutil.STATUS_SLEEPING)  # waits for the rank
    os.kill(wrapped.wrapper, number)
    assert wrapped.line() == number.name
    assert wrapped.process.wait(5) == code


def test_a_wrapper_without_a_rank_ends_when_it_is_told(start_program: StartProgram) -> None:
    wrapped = start(start_program, "1")
    wrapped.go_on()
    wait_until(lambda: not is_running(wrapped.rank))
    time.sleep(0.1)
    assert wrapped.process.poll() is None
    wrapped.process.terminate()
    assert wrapped.process.wait(5) == -signal.SIGTERM


@pytest.mark.parametrize("stopped", [False, True])
def test_a_rank_dies_with_its_wrapper(start_program: StartProgram, stopped: bool) -> None:
    """mpiexec kills the wrapper; a rank that is stopped would otherwise stay for ever."""
    wrapped = start(start_program)
    if stopped:
        os.kill(wrapped.rank, signal.SIGSTOP)
    wrapped.process.kill()
    wait_until(lambda: not is_running(wrapped.rank), 5)
