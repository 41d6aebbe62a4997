"""Where a rank is between one step and the next: what the watchdog over all ranks looks at."""

from __future__ import annotations

import enum
import time
from typing import NamedTuple


class Phase(enum.Enum):
    """What a rank is doing."""

    IDLE = "idle"  # between steps: waits for a request, or for rank 0's next step
    COMPUTING = "computing"  # in a step, by itself
    WAITING = "waiting"  # in a step, for other ranks


class Snapshot(NamedTuple):
    """Where a rank was when it was asked."""

    phase: Phase
    seconds: float  # in this phase
    num_changes: int  # of phase, since start
    expected_s: float  # what the longest computation between two collectives of this step should take


class Progress:
    """Written by the thread that runs the model, read by another. Changing phase costs well under a microsecond."""

    def __init__(self) -> None:
        self._phase = Phase.IDLE
        self._since = time.monotonic()
        self._count = 0
        self._num_tokens = 1  # of this step
        self._longest_s = 0.0  # the longest computation between two collectives so far
        self._longest_tokens = 1  # of the step that it was in

    def begin_step(self, num_tokens: int) -> None:
        """The computations from here on are of a step of so many tokens."""
        self._num_tokens = max(1, num_tokens)

    def enter(self, phase: Phase) -> None:
        """A new phase begins."""
        now = time.monotonic()
        if self._phase is Phase.COMPUTING and now - self._since > self._longest_s:
            self._longest_s, self._longest_tokens = now - self._since, self._num_tokens
        self._phase, self._since = phase, now
        self._count += 1

    def snapshot(self) -> Snapshot:
        """Where the rank is now. From any thread."""
        # A step of more tokens than that of the longest computation so far may take so much longer.
        expected_s = self._longest_s * max(1.0, self._num_tokens / self._longest_tokens)
        return Snapshot(self._phase, max(0.0, time.monotonic() - self._since), self._count, expected_s)
