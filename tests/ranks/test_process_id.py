"""A process is killed where it is the one that is meant, and nobody else ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from briton.ranks.process_id import ProcessId, pid_space
from tests.processes import is_running, wait_until
from tests.ranks.conftest import StartHub, StartProgram
from tests.ranks.jobs import introduce
from tests.ranks.test_hub import MEMBER, first_line


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture(params=["handle", "number"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One with handles of processes, and one without."""
    if request.param == "number":

        def refuse(pid: int) -> int:
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(os, "pidfd_open", refuse)
    kind: str = request.param
    return kind


def test_itself(sleeper: subprocess.Popen[bytes], kernel: str) -> None:
    assert ProcessId.of(sleeper.pid).kill()
    assert sleeper.wait(5) == -signal.SIGKILL


def test_what_has_ended(sleeper: subprocess.Popen[bytes], kernel: str) -> None:
    process = ProcessId.of(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert not process.kill()


@pytest.mark.parametrize("field", ["started", "space"])
@pytest.mark.parametrize("value", ["1", ""])
def test_another_that_has_its_number(sleeper: subprocess.Popen[bytes], kernel: str, field: str, value: str) -> None:
    """The number of a rank that has ended is given out anew: whoever has it was killed."""
    fields = {**ProcessId.of(sleeper.pid)._asdict(), field: value}
    assert not ProcessId(**fields).kill()
    time.sleep(0.1)  # what a signal needs
    assert is_running(sleeper.pid)


@pytest.mark.parametrize("pid", [0, -1])
def test_no_process_at_all(pid: int, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To kill(2) these are groups of processes, -1 all that there are."""
    monkeypatch.setattr(os, "kill", lambda *arguments: pytest.fail(f"sent to {arguments}"))
    assert not ProcessId(pid_space(), pid, "").kill()


def test_a_member_without_a_hub_spares_who_has_a_ranks_number_by_now(
    start_hub: StartHub, start_program: StartProgram, sleeper: subprocess.Popen[bytes]
) -> None:
    hub, _ = start_hub(2)
    stale = ProcessId.of(sleeper.pid)._replace(started="1")
    with introduce(hub, 1, process=stale):
        member = start_program(MEMBER, str(hub.address), "0")
        assert first_line(member) == "serving"
        wait_until(lambda: len(hub.processes()) == 2)
        time.sleep(0.6)  # the member has heard who else there is
        hub.close()
        assert member.wait(5) == 1
    assert is_running(sleeper.pid)
