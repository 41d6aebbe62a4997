"""The supervisor with fake children: order, restarts, drain, and that nothing is left behind."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from briton.process.supervisor import ChildFailed, ChildSpec, RestartPolicy, Supervisor
from tests.processes import is_running, wait_until

FAKE_CHILD = Path(__file__).with_name("fake_child.py")
QUICK = RestartPolicy(first_delay_s=0.02, max_delay_s=0.1, max_failures=3, stable_s=30.0, start_timeout_s=10.0)


class Harness:
    """A supervisor of fake children that runs in a thread of the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lines: list[str] = []
        self.num_ready = 0
        self.result: int | BaseException | None = None
        self._thread: threading.Thread | None = None
        self.supervisor: Supervisor | None = None

    def spec(self, name: str, *behaviours: str) -> ChildSpec:
        command = (sys.executable, str(FAKE_CHILD), name, str(self.directory), *behaviours)
        return ChildSpec(name, command, (self.directory / f"{name}.ready").exists, self.lines.append)

    def start(self, *specs: ChildSpec, policy: RestartPolicy = QUICK, drain_timeout_s: float = 5.0) -> None:
        self.supervisor = Supervisor(specs, policy=policy, drain_timeout_s=drain_timeout_s, on_ready=self._count_ready)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self, signum: int = signal.SIGTERM) -> None:
        assert self.supervisor is not None
        self.supervisor.stop(signum)

    def wait(self, timeout_s: float = 15.0) -> int:
        assert self._thread is not None
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), "the supervisor still runs"
        if isinstance(self.result, BaseException):
            raise self.result
        assert self.result is not None
        return self.result

    def events(self) -> list[str]:
        try:
            return (self.directory / "events").read_text().splitlines()
        except FileNotFoundError:
            return []

    def pid(self, name: str) -> int:
        return int((self.directory / f"{name}.pid").read_text())

    def kill(self, name: str) -> int:
        (self.directory / f"{name}.ready").unlink()
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    def _count_ready(self) -> None:
        self.num_ready += 1

    def _run(self) -> None:
        assert self.supervisor is not None
        try:
            self.result = self.supervisor.run()
        except BaseException as error:
            self.result = error


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    """A harness whose children are ended with the test."""
    harness = Harness(tmp_path)
    yield harness
    if harness.supervisor is not None and harness.result is None:
        harness.stop()
        harness.stop()
        harness.wait()


def test_starts_side_by_side_and_drains_the_last_first(harness: Harness) -> None:
    harness.start(harness.spec("engine"), harness.spec("gateway", "slow"))
    wait_until(lambda: harness.num_ready)
    assert sorted(harness.events()) == ["engine started", "gateway started"]
    harness.stop()
    assert harness.wait() == 0
    assert harness.events()[2:] == ["gateway SIGTERM", "gateway ended", "engine SIGTERM", "engine ended"]
    assert harness.num_ready == 1


def test_all_children_start_before_any_is_ready(harness: Harness) -> None:
    """The gateway was started when the engine served: its own second of loading came on top of the engine's."""
    harness.start(harness.spec("engine", "unready"), harness.spec("gateway"))
    wait_until(lambda: sorted(harness.events()) == ["engine started", "gateway started"])
    time.sleep(0.3)
    assert not harness.num_ready
    (harness.directory / "engine.ready").touch()
    wait_until(lambda: harness.num_ready)
    harness.stop()
    assert harness.wait() == 0


def test_a_child_has_its_own_time_to_start_when_those_before_it_are_ready(harness: Harness) -> None:
    """A gateway is not ready before its engine is: the engine's time is not its fault."""
    policy = replace(QUICK, start_timeout_s=1.5)
    harness.start(harness.spec("engine", "unready"), harness.spec("gateway", "unready"), policy=policy)
    wait_until(lambda: len(harness.events()) == 2)
    pid = harness.pid("gateway")
    time.sleep(1.0)
    (harness.directory / "engine.ready").touch()
    time.sleep(1.0)
    assert is_running(pid)
    with pytest.raises(ChildFailed, match=r"the gateway did not start: it was not ready after 1\.5 s"):
        harness.wait()


@pytest.mark.parametrize("name", ["engine", "gateway"])
def test_sigkill_brings_the_child_back_and_leaves_the_other_alone(harness: Harness, name: str) -> None:
    harness.start(harness.spec("engine"), harness.spec("gateway"))
    wait_until(lambda: harness.num_ready)
    other = {"engine": "gateway", "gateway": "engine"}[name]
    other_pid = harness.pid(other)
    killed = harness.kill(name)
    wait_until((harness.directory / f"{name}.ready").exists)
    assert harness.pid(name) != killed
    assert harness.pid(other) == other_pid
    assert harness.num_ready == 1
    harness.stop()
    assert harness.wait() == 0


def test_a_child_that_answers_no_more_is_started_again(harness: Harness) -> None:
    """Children were asked whether they serve only until the first yes."""
    policy = replace(QUICK, look_s=0.05, unresponsive_s=0.3)
    spec = harness.spec("engine")
    is_alive = harness.directory / "engine.alive"
    is_alive.touch()
    harness.start(replace(spec, is_alive=is_alive.exists), policy=policy)
    wait_until(lambda: harness.num_ready)
    pid = harness.pid("engine")
    time.sleep(0.5)
    assert harness.pid("engine") == pid
    is_alive.unlink()
    wait_until(lambda: not is_running(pid))
    is_alive.touch()
    wait_until(lambda: harness.pid("engine") != pid)
    harness.stop()
    assert harness.wait() == 0


class SteppedClock:
    """The monotonic clock, set forward by `slept_s`: what a process sees that was stopped for so long."""

    def __init__(self) -> None:
        self.slept_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.slept_s


def test_the_supervisors_own_sleep_is_not_a_childs_silence(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor that was stopped for 13 s ended a healthy engine at the first question that it did not answer."""
    clock = SteppedClock()
    monkeypatch.setattr("briton.process.supervisor.time", clock)
    spec, is_alive = harness.spec("engine"), harness.directory / "engine.alive"
    is_alive.touch()
    harness.start(replace(spec, is_alive=is_alive.exists), policy=replace(QUICK, look_s=0.05, unresponsive_s=10))
    wait_until(lambda: harness.num_ready)
    pid = harness.pid("engine")
    is_alive.unlink()
    for _ in range(3):
        clock.slept_s += 13
        time.sleep(0.2)
    is_alive.touch()
    time.sleep(0.2)
    assert is_running(pid)
    harness.stop()
    assert harness.wait() == 0


def test_the_supervisors_own_sleep_is_not_a_late_start(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SteppedClock()
    monkeypatch.setattr("briton.process.supervisor.time", clock)
    harness.start(harness.spec("engine", "unready"), policy=replace(QUICK, start_timeout_s=10.0))
    wait_until(lambda: harness.events())
    clock.slept_s += 3600
    time.sleep(0.3)
    (harness.directory / "engine.ready").touch()
    wait_until(lambda: harness.num_ready)
    harness.stop()
    assert harness.wait() == 0


def test_one_question_without_an_answer_ends_nobody(harness: Harness) -> None:
    answers = itertools.cycle((False, False, True))
    spec = replace(harness.spec("engine"), is_alive=lambda: next(answers))
    harness.start(spec, policy=replace(QUICK, look_s=0.02, unresponsive_s=0.01))
    wait_until(lambda: harness.num_ready)
    pid = harness.pid("engine")
    time.sleep(0.5)
    assert is_running(pid)
    harness.stop()
    assert harness.wait() == 0


def test_a_child_that_does_not_start_fails_with_its_error_line(harness: Harness) -> None:
    harness.start(harness.spec("engine", "crash"), harness.spec("gateway"))
    with pytest.raises(ChildFailed, match=r"^the engine did not start: it ended with exit code 3: the flux is low$"):
        harness.wait()
    assert harness.lines == ["engine speaks", "briton: error: the flux is low", "and a line after it"]
    assert "engine started" not in harness.events()


def test_a_child_that_ends_while_those_before_it_start_is_no_secret(harness: Harness) -> None:
    harness.start(harness.spec("engine", "unready"), harness.spec("gateway", "crash"))
    with pytest.raises(ChildFailed, match=r"^the gateway did not start: it ended with exit code 3: the flux is low$"):
        harness.wait()


def test_a_crash_loop_ends_with_a_clear_line(harness: Harness) -> None:
    harness.start(harness.spec("engine", "crash-later"), harness.spec("gateway"))
    with pytest.raises(
        ChildFailed, match=r"^the engine failed 4 times in a row, giving up: .*code 4: RuntimeError: later$"
    ):
        harness.wait()
    assert harness.events().count("engine started") == 4
    assert not is_running(harness.pid("gateway"))


def test_failures_far_apart_are_not_a_crash_loop(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    policy = RestartPolicy(10.0, first_delay_s=0.01, max_delay_s=0.01, max_failures=1, stable_s=0.0)
    harness.start(harness.spec("engine"), policy=policy)
    wait_until(lambda: harness.num_ready)

    def restarted(killed: int) -> bool:
        return harness.pid("engine") != killed and (harness.directory / "engine.ready").exists()

    for _ in range(3):
        killed = harness.kill("engine")
        wait_until(functools.partial(restarted, killed))
        time.sleep(0.25)  # until the supervisor has seen it ready
    harness.stop()
    assert harness.wait() == 0


def test_a_child_that_is_never_ready_is_ended(harness: Harness) -> None:
    harness.start(harness.spec("engine", "unready"), policy=RestartPolicy(start_timeout_s=0.3))
    with pytest.raises(
        ChildFailed, match=r"the engine did not start: it was not ready after 0\.3 s \(briton\.start_timeout_s\)"
    ):
        harness.wait()


def test_restart_delays_double_up_to_the_cap() -> None:
    policy = RestartPolicy(10.0, first_delay_s=0.5, max_delay_s=3.0)
    assert [policy.delay_s(failures) for failures in (1, 2, 3, 4, 5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_stop_while_starting(harness: Harness) -> None:
    harness.start(harness.spec("engine", "unready"), harness.spec("gateway"))
    wait_until(lambda: len(harness.events()) == 2)
    harness.stop()
    assert harness.wait() == 0
    assert harness.events()[2:] == ["gateway SIGTERM", "gateway ended", "engine SIGTERM", "engine ended"]


def test_stop_while_a_child_waits_for_its_restart(harness: Harness) -> None:
    policy = RestartPolicy(10.0, first_delay_s=60.0, max_delay_s=60.0)
    harness.start(harness.spec("engine"), harness.spec("gateway"), policy=policy)
    wait_until(lambda: harness.num_ready)
    pid = harness.kill("engine")
    wait_until(lambda: not is_running(pid))
    time.sleep(0.1)
    harness.stop()
    assert harness.wait() == 0
    assert harness.events()[2:] == ["gateway SIGTERM", "gateway ended"]


def test_a_second_signal_ends_everything_at_once(harness: Harness) -> None:
    harness.start(harness.spec("engine"), harness.spec("gateway", "deaf"), drain_timeout_s=60.0)
    wait_until(lambda: harness.num_ready)
    pids = [harness.pid("engine"), harness.pid("gateway")]
    harness.stop(signal.SIGINT)
    wait_until(lambda: "gateway SIGTERM" in harness.events())
    harness.stop(signal.SIGINT)
    assert harness.wait(timeout_s=3.0) == 128 + signal.SIGINT
    assert not any(is_running(pid) for pid in pids)


def test_a_child_that_does_not_drain_in_time_is_ended(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("briton.process.supervisor._LAST_GRACE_S", 0.2)
    harness.start(harness.spec("engine"), harness.spec("gateway", "deaf"), drain_timeout_s=0.1)
    wait_until(lambda: harness.num_ready)
    harness.stop()
    assert harness.wait(timeout_s=5.0) == 0
    assert harness.events()[2:] == ["gateway SIGTERM", "engine SIGTERM", "engine ended"]


def test_what_a_killed_child_started_goes_with_it(harness: Harness) -> None:
    harness.start(harness.spec("engine", "grandchild"))
    wait_until(lambda: harness.num_ready)
    grandchild = int((harness.directory / "engine.grandchild").read_text())
    assert is_running(grandchild)
    harness.kill("engine")
    wait_until(lambda: not is_running(grandchild))
    harness.stop()
    assert harness.wait() == 0
