"""Hubs, members and processes that end with their test."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from briton.ranks.hub import Hub
from briton.ranks.member import Member
from briton.ranks.process_id import ProcessId
from tests.ranks.jobs import Events, Joined, end, environment

StartHub = Callable[..., tuple[Hub, Events]]
Join = Callable[[Hub, int], Joined]
StartProgram = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often this process would have killed itself: members in it are ranks to each other."""
    spared: list[int] = []
    kill = ProcessId.kill

    def spare_tests(process: ProcessId) -> bool:
        if process.pid != os.getpid():
            return kill(process)
        spared.append(process.pid)
        return True

    monkeypatch.setattr(ProcessId, "kill", spare_tests)
    return spared


@pytest.fixture
def start_hub() -> Iterator[StartHub]:
    """Starts a hub, and gives what it reports."""
    hubs: list[Hub] = []

    def start(size: int, **options: Any) -> tuple[Hub, Events]:
        events = Events()
        hubs.append(Hub(size, events.put, **options))
        hubs[-1].start()
        return hubs[-1], events

    yield start
    for hub in hubs:
        hub.close()


@pytest.fixture
def join(start_hub: StartHub, kills: list[int]) -> Iterator[Join]:
    """Joins a hub as a rank, in this process."""
    members: list[Member] = []

    def make(hub: Hub, rank: int) -> Joined:
        joined = Joined(Member(hub.address, rank))
        members.append(joined.member)
        return joined

    yield make
    for member in members:
        end(member)


@pytest.fixture
def start_program() -> Iterator[StartProgram]:
    """Starts a Python program, in a session of its own; whatever runs of it at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**variables),
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
