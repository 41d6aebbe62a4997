"""Ranks that say and hear nothing while a library loads their model."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from briton.ranks.failure_rules import LOADING_SILENCE_S, RankState, find_failure
from briton.ranks.hub import Hub, JobFailure, LeaderExit
from briton.ranks.member import Member
from briton.ranks.messages import Lines, encode
from briton.ranks.progress import Progress
from tests.processes import wait_until

Events = list[JobFailure | LeaderExit]


@pytest.fixture
def started() -> Iterator[tuple[Hub, Events]]:
    events: Events = []
    hub = Hub(1, events.append)
    hub.start()
    yield hub, events
    hub.close()


def _state(silence_s: float, granted_s: float, *, is_serving: bool = False) -> RankState:
    return RankState("here", silence_s, is_serving, Progress().snapshot(), granted_s)


def test_a_rank_may_be_silent_as_long_as_it_was_granted() -> None:
    silence, granted = LOADING_SILENCE_S + 1, 2 * LOADING_SILENCE_S
    assert find_failure({0: _state(silence, LOADING_SILENCE_S)}) is not None
    assert find_failure({0: _state(silence, granted)}) is None
    assert find_failure({0: _state(granted + 1, granted)}) is not None
    assert find_failure({0: _state(silence, granted, is_serving=True)}) is not None


def test_the_hub_hears_how_long(started: tuple[Hub, Events]) -> None:
    hub, _ = started
    member = Member(hub.address, 0)
    member.expect_silence(100.0)
    wait_until(lambda: [c.loading_silence_s for c in hub._connections] == [100.0])
    member.leave()
    member._thread.join()
    member._socket.close()


def test_what_a_rank_has_not_taken_waits_for_it_whole(started: tuple[Hub, Events]) -> None:
    hub, events = started
    num_messages = 400_000  # more than sockets hold
    with socket.create_connection(("127.0.0.1", hub.address.port)) as connection:
        connection.sendall(encode("hello", token=hub.address.token, rank=0, host="here", process=["", 0, ""]))
        wait_until(hub.drain)
        for _ in range(num_messages):
            hub.drain()
        time.sleep(0.5)  # the hub has sent what the sockets hold
        lines, kinds = Lines(connection), list[str]()
        connection.settimeout(5)
        deadline = time.monotonic() + 20
        while kinds.count("drain") <= num_messages:
            assert time.monotonic() < deadline
            connection.sendall(encode("beat", progress=["idle", 0, 0, 0], serving=False, stats={}))
            kinds += [str(message["kind"]) for message in lines.receive()]
        assert not events
    assert set(kinds) == {"beat", "drain"}
