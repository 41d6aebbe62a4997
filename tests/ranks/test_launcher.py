"""A launcher over a fake mpiexec, whose ranks join for real: how jobs end, what is said, and that nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from briton.ranks.process_id import ProcessId
from tests.processes import is_running, wait_until
from tests.ranks.conftest import StartProgram
from tests.ranks.jobs import HOST

MPIEXEC = Path(__file__).with_name("fake_mpiexec.py")
# argv: size, command
PROGRAM = """
import os, sys
from briton.errors import BritonError, exit_code_of
from briton.ranks.launcher import Launcher

try:
    code = Launcher(sys.argv[2:], int(sys.argv[1]), dict(os.environ)).run()
except BritonError as error:
    print(f"{type(error).__name__}: {error.message}")
    code = exit_code_of(error)
sys.exit(code)
"""


class Job:
    """A launcher's process and its ranks."""

    def __init__(self, process: subprocess.Popen[str], directory: Path, size: int) -> None:
        self.process = process
        self.directory = directory
        self.size = size

    def await_all(self, suffix: str = "joined") -> None:
        """Wait until every rank has left that file."""
        wait_until(lambda: all((self.directory / f"{rank}.{suffix}").exists() for rank in range(self.size)))

    def pid(self, name: int | str) -> int:
        """The process id of a rank, or of mpiexec."""
        return int((self.directory / f"{name}.pid").read_text())

    def told(self, rank: int) -> str:
        """What a rank was told of the job's end."""
        return (self.directory / f"{rank}.told").read_text()

    def go(self) -> None:
        """Those that wait to fail do so."""
        (self.directory / "go").touch()

    def end(self, timeout_s: float = 10.0) -> tuple[int, str]:
        """The exit code and the last words; nothing of it may be running."""
        out, errors = self.process.communicate(timeout=timeout_s)
        assert "Traceback" not in errors
        assert [file.name for file in self.directory.glob("*.pid") if is_running(int(file.read_text()))] == []
        return self.process.returncode, out.strip()


Launch = Callable[..., Job]


@pytest.fixture
def launch(start_program: StartProgram, tmp_path: Path) -> Iterator[Launch]:
    """Starts a job of so many ranks, that behave as they are told."""

    def start(size: int, *behaviours: str) -> Job:
        command = (sys.executable, str(MPIEXEC), str(tmp_path), str(size), *behaviours)
        return Job(start_program(PROGRAM, str(size), *command), tmp_path, size)

    yield start
    for file in tmp_path.glob("*.pid"):
        if is_running(int(file.read_text())):
            os.kill(int(file.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(launch: Launch, number: signal.Signals) -> None:
    """It reaches rank 0 alone; the others follow it, and nobody hears of a failure."""
    job = launch(3)
    job.await_all()
    job.process.send_signal(number)
    assert job.end() == (0, "")
    assert not list(job.directory.glob("*.told"))


@pytest.mark.timing
@pytest.mark.slow
def test_ranks_that_do_not_follow_are_ended(launch: Launch) -> None:
    job = launch(2, "1=stay")
    job.await_all()
    job.process.terminate()
    started = time.monotonic()
    assert job.end() == (0, "")
    assert time.monotonic() - started < 6


def test_a_signal_before_any_rank_has_joined(launch: Launch) -> None:
    job = launch(2, "0=absent", "1=absent")
    job.await_all("pid")
    job.process.terminate()
    assert job.end(3) == (0, "")


@pytest.mark.slow
def test_a_signal_while_ranks_load(launch: Launch) -> None:
    """Rank 0 was asked to drain before it listened, and went on to serve."""
    job = launch(2, "0=load", "1=load")
    job.await_all()
    job.process.terminate()
    assert job.end() == (0, "")


@pytest.mark.parametrize(
    ("behaviour", "code", "last_words"),
    [
        ("refuse", 2, f"ConfigError: rank 1 on {HOST}: it has to refuse"),
        ("break", 1, f"BritonError: rank 1 on {HOST}: it has to break"),
        ("die", 1, f"BritonError: rank 1 on {HOST} is gone"),
    ],
)
@pytest.mark.parametrize("mpiexec", ["patient", "hasty"])
def test_a_rank_that_fails(launch: Launch, behaviour: str, code: int, last_words: str, mpiexec: str) -> None:
    """The reason is the rank's, whether mpiexec waits for the others or ends at once."""
    job = launch(2, f"1={behaviour}", f"mpiexec={mpiexec}")
    job.await_all()
    job.go()
    assert job.end(5) == (code, last_words)
    if mpiexec == "patient":
        assert job.told(0) == last_words.partition(": ")[2]


@pytest.mark.timing
def test_rank_0_fails_and_the_others_would_stay(launch: Launch) -> None:
    """There is nobody to tell clients: nothing is waited for."""
    job = launch(3, "0=die", "1=stay", "2=stay")
    job.await_all()
    job.go()
    started = time.monotonic()
    assert job.end() == (1, f"BritonError: rank 0 on {HOST} is gone")
    assert time.monotonic() - started < 2


@pytest.mark.timing
def test_rank_0_has_its_farewell_though_others_stay(launch: Launch) -> None:
    job = launch(3, "1=refuse", "2=stay")
    job.await_all()
    job.go()
    started = time.monotonic()
    assert job.end() == (2, f"ConfigError: rank 1 on {HOST}: it has to refuse")
    assert time.monotonic() - started < 2  # it ends when rank 0 has, not when all time is up
    assert job.told(0) == f"rank 1 on {HOST}: it has to refuse"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped(launch: Launch, rank: int) -> None:
    """It cannot end by itself."""
    job = launch(2)
    job.await_all()
    time.sleep(0.6)  # the hub knows that all serve
    os.kill(job.pid(rank), signal.SIGSTOP)
    code, last_words = job.end()
    assert code == 1
    assert f"rank {rank} on {HOST} has not been heard of for 2." in last_words


def test_mpiexec_ends_by_itself(launch: Launch) -> None:
    job = launch(2, "mpiexec=end")
    code, last_words = job.end(5)
    assert (code, last_words) == (1, f"BritonError: mpiexec (pid {job.pid('mpiexec')}) ended with exit code 7")


def test_mpiexec_is_killed(launch: Launch) -> None:
    """Its ranks, orphans then, are ended all the same."""
    job = launch(2, "0=stay", "1=stay")
    job.await_all()
    os.kill(job.pid("mpiexec"), signal.SIGKILL)
    assert job.end(5) == (1, f"BritonError: mpiexec (pid {job.pid('mpiexec')}) ended with exit code -9")


def test_ranks_do_not_outlive_a_killed_launcher(launch: Launch) -> None:
    """Not even one that is stopped."""
    job = launch(2)
    job.await_all()
    time.sleep(0.6)  # every rank knows the others
    os.kill(job.pid(1), signal.SIGSTOP)
    job.process.kill()
    wait_until(lambda: not any(is_running(job.pid(name)) for name in (0, 1, "mpiexec")), 5)


# argv: the process that a rank says it is
STALE_RANK = """
import os, socket, sys
from briton.ranks.messages import HubAddress, encode

hub = HubAddress.parse(os.environ["BRITON_JOB"])
connection = socket.create_connection((hub.hosts[0], hub.port))
process = [sys.argv[1], int(sys.argv[2]), sys.argv[3]]
connection.sendall(encode("hello", token=hub.token, rank=0, host="here", process=process))
connection.sendall(encode("failed", message="it has to", exit_code=1))
connection.recv(1)
"""


@pytest.mark.parametrize("is_stale", [True, False])
def test_who_has_a_ranks_number_by_now_is_spared(start_program: StartProgram, is_stale: bool) -> None:
    """At a job's end whoever had the number of one of its ranks was killed."""
    bystander = start_program("import time; time.sleep(60)")
    process = ProcessId.of(bystander.pid)
    if is_stale:
        process = process._replace(started="1")
    rank = (sys.executable, "-c", STALE_RANK, *map(str, process))
    out, errors = start_program(PROGRAM, "1", *rank).communicate(timeout=10)
    assert out.strip() == "BritonError: rank 0 on here: it has to", errors
    if is_stale:
        time.sleep(0.1)  # what a signal needs
        assert is_running(bystander.pid)
    else:
        wait_until(lambda: not is_running(bystander.pid))
