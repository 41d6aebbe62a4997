"""The scheduling policy of the threads beside the model."""

from __future__ import annotations

import os
import threading

import pytest

from briton.process.cpu import never_preempt


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="a policy of Linux")
def test_the_calling_thread_alone_and_what_it_starts() -> None:
    policies: list[int] = []

    def inner() -> None:
        policies.append(os.sched_getscheduler(0))

    def outer() -> None:
        never_preempt()
        inner()
        thread = threading.Thread(target=inner)
        thread.start()
        thread.join()

    thread = threading.Thread(target=outer)
    thread.start()
    thread.join()
    assert policies == [os.SCHED_BATCH, os.SCHED_BATCH]
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_a_kernel_that_forbids_it_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(*_: object) -> None:
        raise PermissionError("seccomp")

    monkeypatch.setattr(os, "sched_setscheduler", forbid, raising=False)
    never_preempt()
