"""A rank that is stopped says nothing and cannot end itself: its hub notices, or its neighbour where no hub is left."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from briton.ranks.hub import Hub, JobFailure, LeaderExit
from briton.ranks.member import Member
from briton.ranks.process_id import ProcessId, pid_space
from tests.processes import is_running, wait_until

# argv: the hub's address, this rank, the space of its pid as it is told to the hub
PROGRAM = """
import os, signal, sys
import briton.ranks.member as member
import briton.ranks.process_id as process_id
from briton.ranks.messages import HubAddress

process_id.pid_space = lambda: sys.argv[3]
rank = member.Member(HubAddress.parse(sys.argv[1]), int(sys.argv[2]))
rank.serve()
os.kill(os.getpid(), signal.SIGSTOP)
"""
DETECTED_S = 3.0

Events = queue.SimpleQueue[JobFailure | LeaderExit]
StopRank = Callable[[Hub, int, str], int]


@pytest.fixture
def stop_rank() -> Iterator[StopRank]:
    """Starts a rank that stops itself as soon as it serves; gives its pid when it has."""
    with contextlib.ExitStack() as stack:

        def stop(hub: Hub, rank: int, space: str) -> int:
            process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(hub.address), str(rank), space])
            stack.callback(process.wait)
            stack.callback(process.kill)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            return process.pid

        yield stop


@pytest.mark.slow
def test_as_soon_as_it_serves(stop_rank: StopRank) -> None:
    """Regression: until its next beat the hub took it for a rank that loads, which may be silent for a minute."""
    events: Events = queue.SimpleQueue()
    hub = Hub(1, events.put)
    hub.start()
    try:
        stop_rank(hub, 0, pid_space())
        failure = events.get(timeout=DETECTED_S)
        assert isinstance(failure, JobFailure)
        assert failure.rank == 0
        assert "has not been heard of" in failure.message
    finally:
        hub.close()


@pytest.mark.parametrize("is_neighbour", [True, False])
def test_without_a_hub(stop_rank: StopRank, is_neighbour: bool) -> None:
    """Its neighbour ends it; a rank of another machine must not end whatever has the same pid here, though that
    machine calls itself by the same name."""
    events: Events = queue.SimpleQueue()
    hub = Hub(2, events.put)
    hub.start()
    member = Member(hub.address, 0)
    lost: queue.SimpleQueue[str] = queue.SimpleQueue()
    member.on_abort = lost.put
    pid = stop_rank(hub, 1, pid_space() if is_neighbour else "another machine")
    wait_until(lambda: len(member.all_stats()) == 2)
    assert {process.pid for process in hub.processes()} == {os.getpid(), pid}
    assert (ProcessId.of(pid) in hub.processes()) == is_neighbour
    hub.close()
    assert "hub is gone" in lost.get(timeout=DETECTED_S)
    if is_neighbour:
        wait_until(lambda: not is_running(pid))
    else:
        time.sleep(0.2)  # what a signal needs
        assert is_running(pid)


def test_another_process_namespace() -> None:
    """It is told apart from this one; a child of ours is not."""
    program = [sys.executable, "-c", "from briton.ranks.process_id import pid_space; print(pid_space())"]
    assert subprocess.check_output(program, text=True).strip() == pid_space()
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run([*unshare, "true"], capture_output=True).returncode == 0:
            other = subprocess.check_output([*unshare, *program], text=True).strip()
            assert other
            assert other != pid_space()
            return
    pytest.skip("process namespaces are not allowed here")
