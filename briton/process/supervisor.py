"""Keeps the processes of `briton serve` running: start all, restart what dies, drain one after the other.

Knows commands, exits and clocks. It does not know what an engine or a gateway is, which `process.serve` says, and
installs no signal handlers: whoever does calls `stop`.
"""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from briton.errors import BritonError
from briton.process.child_process import ChildProcess

logger = logging.getLogger(__name__)

_POLL_S = 0.1  # between two questions to a child that is starting
_PASS_S = 2.0  # what asking all children may take: more is time in which this process itself did not run
_LAST_GRACE_S = 5.0  # what a child gets to end, when those before it have used up the time to drain


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A program to keep running. `is_ready` is asked while it starts, once those before it were ready, `is_alive` from
    then on; both must answer within about a second."""

    name: str
    command: tuple[str, ...]
    is_ready: Callable[[], bool]
    on_line: Callable[[str], None]
    is_alive: Callable[[], bool] = lambda: True


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How long a child may take to start, and when one that died is started again. Times in seconds."""

    start_timeout_s: float  # from start to ready; before those before it are ready, no time passes
    first_delay_s: float = 0.25  # doubles with each failure in a row
    max_delay_s: float = 10.0
    max_failures: int = 6  # in a row; the next one ends the supervisor
    stable_s: float = 60.0  # ready for so long, and the next death is the first again
    look_s: float = 1.0  # between two questions whether a child that is ready is alive
    unresponsive_s: float = 10.0  # a child that has not been alive for so long is ended, and started again,
    least_misses: int = 3  # after as many questions in a row that it did not answer

    def delay_s(self, failures: int) -> float:
        """How long to wait before the restart that follows this many failures in a row."""
        return min(self.first_delay_s * 2.0 ** (failures - 1), self.max_delay_s)


@dataclass(eq=False)
class ChildFailed(BritonError):
    """A child did not start, or dies again and again."""

    name: str = ""
    returncode: int | None = None  # of its last process


@dataclass(slots=True)
class _Slot:
    """A spec and what is known of its process. Times are of the monotonic clock."""

    spec: ChildSpec
    process: ChildProcess | None = None
    start_at: float = 0.0
    started_at: float = 0.0
    ready_at: float | None = None  # of this process
    was_ready: bool = False  # of any process of this slot
    look_at: float = 0.0  # it is asked again
    looked_at: float = 0.0  # it was asked last
    misses: int = 0  # in a row: questions that it did not answer with yes
    silent_s: float = 0.0  # since the last yes, or since nothing but its own start is waited for
    failures: int = 0  # in a row
    timed_out: bool = False  # this process was ended, since it was not ready in time

    def start(self, now: float, on_exit: Callable[[ChildProcess], None]) -> None:
        self.started_at = now
        self.forgive(now)
        self.ready_at, self.timed_out = None, False
        self.process = ChildProcess(self.spec.command, on_line=self.spec.on_line, on_exit=on_exit)
        logger.info("%s started, pid %d", self.spec.name, self.process.pid)

    def forgive(self, now: float) -> None:
        """Count its silence from now on."""
        self.looked_at, self.misses, self.silent_s = now, 0, 0.0

    def miss(self, now: float, pause_s: float) -> None:
        """It was asked `pause_s` after the last time, and did not say yes. What this process itself slept through
        (SIGSTOP, a laptop's lid) is not the child's silence."""
        self.silent_s += min(now - self.looked_at, pause_s + _PASS_S)
        self.looked_at = now
        self.misses += 1


class Supervisor:
    """Runs children until `stop` is called, from any thread, or one of them cannot be kept running."""

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        *,
        policy: RestartPolicy,
        drain_timeout_s: float,
        on_ready: Callable[[], None],
    ) -> None:
        """`specs`: each may wait for those before it to become ready, and is drained before them. All are started at
        once. `on_ready`: once, when all are ready."""
        self._slots = [_Slot(spec) for spec in specs]
        self._policy = policy
        self._drain_timeout_s = drain_timeout_s
        self._on_ready = on_ready
        self._all_ready = False
        # A signal's number, or a child that has ended. SimpleQueue.put may be called from a signal handler.
        self._events: queue.SimpleQueue[int | ChildProcess] = queue.SimpleQueue()

    def stop(self, signum: int) -> None:
        """Drain and return from `run`; the second call ends everything at once. Safe in a signal handler."""
        self._events.put(signum)

    def run(self) -> int:
        """Returns the exit code: 0 after a drain, 128 + signal when a second one cut it short. Raises ChildFailed."""
        try:
            while True:
                self._start_what_is_due()
                event = self._next_event(self._time_to_next_action())
                if isinstance(event, ChildProcess):
                    self._on_exit(event)
                elif event is not None:
                    return self._drain()
        finally:
            running = [slot.process for slot in self._slots if slot.process is not None]
            for process in running:
                process.kill()
            for process in running:
                process.join(timeout_s=2.0)

    def _start_what_is_due(self) -> None:
        for slot in self._slots:
            if slot.process is None and time.monotonic() >= slot.start_at:
                slot.start(time.monotonic(), self._events.put)
        for i, slot in enumerate(self._slots):
            if slot.process is None:
                continue
            if slot.ready_at is None:
                self._await_ready(slot, slot.process)
            elif time.monotonic() >= slot.look_at:
                self._look_after(slot, slot.process)
            if not slot.was_ready:
                for waiting in self._slots[i + 1 :]:
                    waiting.forgive(time.monotonic())
                return
        if not self._all_ready:
            self._all_ready = True
            self._on_ready()

    def _await_ready(self, slot: _Slot, process: ChildProcess) -> None:
        is_ready = slot.spec.is_ready()
        now = time.monotonic()
        if is_ready:
            slot.forgive(now)
            slot.ready_at, slot.look_at = now, now + self._policy.look_s
            slot.was_ready = True
            logger.info("%s is ready after %.1f s", slot.spec.name, now - slot.started_at)
            return
        slot.miss(now, _POLL_S)
        if slot.silent_s > self._policy.start_timeout_s:
            logger.error("%s %s: ending it", slot.spec.name, self._too_late())
            slot.timed_out = True
            slot.forgive(now)  # a process stuck in the kernel: say it again, but not at once
            process.kill()

    def _look_after(self, slot: _Slot, process: ChildProcess) -> None:
        """A process may run and do nothing: whoever was ready once is asked on."""
        is_alive = slot.spec.is_alive()
        now = time.monotonic()
        slot.look_at = now + self._policy.look_s
        if is_alive:
            slot.forgive(now)
            return
        slot.miss(now, self._policy.look_s)
        if slot.misses >= self._policy.least_misses and slot.silent_s > self._policy.unresponsive_s:
            logger.error("%s has not answered for %.0f s: ending it", slot.spec.name, slot.silent_s)
            slot.forgive(now)  # a process stuck in the kernel: say it again, but not at once
            process.kill()

    def _too_late(self) -> str:
        return f"was not ready after {self._policy.start_timeout_s:g} s (briton.start_timeout_s)"

    def _time_to_next_action(self) -> float | None:
        """Seconds, or None when nothing but an event can need one."""
        if any(slot.process is not None and slot.ready_at is None for slot in self._slots):
            return _POLL_S
        due = [slot.start_at if slot.process is None else slot.look_at for slot in self._slots]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _next_event(self, timeout_s: float | None) -> int | ChildProcess | None:
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _on_exit(self, process: ChildProcess) -> None:
        """Plan the restart of a child that ended by itself; raise ChildFailed when there is no use in it."""
        slot = next(slot for slot in self._slots if slot.process is process)
        name, now = slot.spec.name, time.monotonic()
        how = self._too_late() if slot.timed_out else process.describe_exit()
        stable = slot.ready_at is not None and now - slot.ready_at >= self._policy.stable_s
        slot.failures = 1 if stable else slot.failures + 1
        slot.process, slot.ready_at = None, None
        if not slot.was_ready:
            raise ChildFailed(f"the {name} did not start: it {how}", name, process.returncode)
        if slot.failures > self._policy.max_failures:
            raise ChildFailed(
                f"the {name} failed {slot.failures} times in a row, giving up: it {how}", name, process.returncode
            )
        delay_s = self._policy.delay_s(slot.failures)
        slot.start_at = now + delay_s
        logger.error("%s %s; starting it again in %.2g s", name, how, delay_s)

    def _drain(self) -> int:
        """End the children, the last started first, each when the one before has ended. Returns the exit code."""
        logger.info("draining for at most %g s; a second signal ends everything at once", self._drain_timeout_s)
        deadline = time.monotonic() + self._drain_timeout_s
        for slot in reversed(self._slots):
            if slot.process is None:
                continue
            slot.process.terminate()
            # A child keeps the same time to drain itself: the grace here is for its own ending after that.
            signum = self._await_exit(slot, max(deadline, time.monotonic()) + _LAST_GRACE_S)
            if signum is not None:
                logger.warning("second signal: ending at once")
                return 128 + signum
        logger.info("drained")
        return 0

    def _await_exit(self, slot: _Slot, deadline: float | None) -> int | None:
        """Wait for one child's end, SIGKILL it at the deadline. Returns a signal's number if one came instead."""
        while slot.process is not None:
            event = self._next_event(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if isinstance(event, ChildProcess):
                ended = next(slot for slot in self._slots if slot.process is event)
                ended.process = None
            elif event is not None:
                return event
            else:
                logger.warning("%s has not drained in time: ending it", slot.spec.name)
                slot.process.kill()
                deadline = None
        return None
