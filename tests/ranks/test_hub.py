"""A hub and its members over real sockets: who may come, who is missed, who hears of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from briton.engine.types import RankStats
from briton.errors import BritonError
from briton.ranks import hub as hub_module
from briton.ranks.hub import JobFailure, LeaderExit
from briton.ranks.member import Member
from briton.ranks.messages import HubAddress, encode
from briton.ranks.process_id import ProcessId
from briton.ranks.progress import Phase
from tests.processes import is_running, wait_until
from tests.ranks.conftest import Join, StartHub, StartProgram
from tests.ranks.jobs import HOST, beat, connect, introduce, is_closed

# argv: the hub's address, this one's rank
MEMBER = """
import sys, time
from briton.ranks.member import Member
from briton.ranks.messages import BEAT_S, HubAddress
member = Member(HubAddress.parse(sys.argv[1]), int(sys.argv[2]))
member.serve()
time.sleep(2 * BEAT_S)  # the hub has heard it
print("serving", flush=True)
time.sleep(60)
"""
HUB = """
import time
from briton.ranks.hub import Hub
hub = Hub(2, print)
hub.start()
print(hub.address, flush=True)
time.sleep(60)
"""


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def start_member(start_program: StartProgram, address: str, rank: int) -> subprocess.Popen[str]:
    """A rank in a process of its own, that serves."""
    process = start_program(MEMBER, address, str(rank))
    assert first_line(process) == "serving"
    return process


def stop(process: subprocess.Popen[str]) -> None:
    """SIGSTOP, and wait until it stands."""
    process.send_signal(signal.SIGSTOP)

    def state() -> str:
        with open(f"/proc/{process.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]

    wait_until(lambda: state() == "T")


# Who may come.


def test_an_address_as_text() -> None:
    address = HubAddress(("10.0.0.1", "127.0.0.1"), 4711, "secret")
    assert HubAddress.parse(str(address)) == address


@pytest.mark.parametrize("text", ["", "secret", "secret@4711", "secret@x@host", "@4711@host", "secret@4711@"])
def test_an_address_that_cannot_be_read(text: str) -> None:
    with pytest.raises(BritonError, match="BRITON_JOB"):
        HubAddress.parse(text)


def test_no_hub_there(start_hub: StartHub) -> None:
    hub, _ = start_hub(1)
    hub.close()
    with pytest.raises(BritonError, match=rf"cannot be reached on port {hub.address.port}: 127\.0\.0\.1: .*refused"):
        Member(HubAddress(("127.0.0.1",), hub.address.port, "x"), 0)


def test_a_member_takes_the_first_address_that_answers(start_hub: StartHub, join: Join) -> None:
    hub, events = start_hub(1)
    hub.address = replace(hub.address, hosts=("nowhere.invalid", "127.0.0.1"))
    join(hub, 0).member.leave()
    assert events.next() == LeaderExit()


@pytest.mark.parametrize("token", ["", "0" * 32, "é", 5, None])
def test_a_stranger_is_refused(start_hub: StartHub, join: Join, token: object) -> None:
    """And changes nothing for those who belong here."""
    hub, events = start_hub(2)
    joined = [join(hub, 0)]
    with introduce(hub, 1, token=token) as stranger:
        assert is_closed(stranger)
    joined.append(join(hub, 1))
    wait_until(lambda: len(joined[0].member.all_stats()) == 2)
    events.assert_none()


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\x00\n",
        b"[]\n",
        b"{}\n",
        b'{"kind":"hello"}\n',
        b'{"kind":"farewell"}\n',
        b'{"kind":"failed","message":"x","exit_code":1}\n',
        b"[" * 60_000 + b"\n",  # deeper than the parser goes: this ended the hub's thread
        b"x" * (2 << 20),  # longer than any line is
    ],
)
def test_garbage_of_a_stranger(start_hub: StartHub, join: Join, line: bytes) -> None:
    hub, events = start_hub(1)
    joined = join(hub, 0)
    with connect(hub) as stranger:
        with contextlib.suppress(ConnectionError):
            stranger.sendall(line)
        assert is_closed(stranger)
    events.assert_none()
    wait_until(lambda: joined.member.all_stats())
    assert hub.drain()
    wait_until(lambda: joined.drains)  # the hub goes on


@pytest.mark.parametrize(
    "line",
    [b"garbage\n", b'{"kind":"beat"}\n', beat(phase="asleep"), encode("beat", progress=3, serving=True, stats={})],
)
def test_garbage_of_a_member_is_its_end(start_hub: StartHub, join: Join, line: bytes) -> None:
    hub, events = start_hub(2)
    joined = join(hub, 0)
    with introduce(hub, 1) as member:
        member.sendall(line)
        assert events.failure() == JobFailure("rank 1 on elsewhere is gone", rank=1)
        assert is_closed(member)
    wait_until(lambda: joined.aborts == ["rank 1 on elsewhere is gone"])


def test_lines_in_pieces_and_lines_of_a_kind_not_known(start_hub: StartHub, join: Join) -> None:
    hub, events = start_hub(2)
    join(hub, 0)
    with introduce(hub, 1) as member:
        for byte in encode("gossip") + beat():
            member.sendall(bytes([byte]))
        member.sendall(encode("failed", message="no memory", exit_code=3) + beat())
        assert events.failure() == JobFailure("rank 1 on elsewhere: no memory", 3, 1)


@pytest.mark.parametrize("line", [b"", beat()])
def test_who_does_not_say_which_rank_it_is_is_not_waited_for(
    start_hub: StartHub, join: Join, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    """Its connection was kept for as long as the job: each port scanner cost a file."""
    monkeypatch.setattr(hub_module, "_INTRODUCTION_S", 0.3)
    hub, events = start_hub(1)
    joined = join(hub, 0)
    with connect(hub) as stranger:
        stranger.sendall(line[:-1])  # no whole line
        assert is_closed(stranger)
    time.sleep(0.3)
    assert [connection.rank for connection in hub._connections] == [0], "a rank is no stranger, however long it is here"
    assert not joined.aborts
    events.assert_none(0.1)


# Who leaves, and who is missed.


def test_farewells_are_no_failure(start_hub: StartHub, join: Join) -> None:
    """Rank 0's is told: the others follow it."""
    hub, events = start_hub(3)
    joined = [join(hub, rank) for rank in range(3)]
    wait_until(lambda: len(joined[0].member.all_stats()) == 3)
    joined[2].member.leave()
    joined[2].member.leave()
    events.assert_none()
    joined[0].member.leave()
    assert events.next() == LeaderExit()
    events.assert_none()
    assert [member.aborts for member in joined] == [[], [], []]


def test_rank_0_is_watched_until_it_has_left_itself(start_hub: StartHub, join: Join) -> None:
    """The others leave first: what became of rank 0 in its last second was nobody's business."""
    hub, events = start_hub(2, join_timeout_s=0.5)
    with introduce(hub, 1) as other:
        zero = introduce(hub, 0)
        other.sendall(encode("farewell"))
    events.assert_none(0.8)  # rank 1 has not failed to come
    zero.close()
    assert events.failure() == JobFailure("rank 0 on elsewhere is gone", rank=0)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_failure_is_told_to_all(start_hub: StartHub, join: Join, rank: int) -> None:
    hub, events = start_hub(2)
    joined = [join(hub, 0), join(hub, 1)]
    wait_until(lambda: len(joined[0].member.all_stats()) == 2)
    joined[rank].member.fail("max_seq_len is 9", exit_code=2)
    message = f"rank {rank} on {HOST}: max_seq_len is 9"
    assert events.failure() == JobFailure(message, 2, rank)
    wait_until(lambda: all(member.aborts == [message] for member in joined))


def test_the_first_failure_counts(start_hub: StartHub, join: Join) -> None:
    hub, events = start_hub(2)
    with introduce(hub, 0) as zero, introduce(hub, 1) as one:
        zero.sendall(encode("failed", message="first", exit_code=1))
        assert events.failure().message == "rank 0 on elsewhere: first"
        one.sendall(encode("failed", message="second", exit_code=1))
        events.assert_none()
        zero.close()
        assert events.next() == LeaderExit()  # rank 0 has told its clients


@pytest.mark.parametrize("rank", [0, 1])
def test_a_connection_that_ends_without_a_farewell(start_hub: StartHub, join: Join, rank: int) -> None:
    hub, events = start_hub(2)
    other = join(hub, 1 - rank)
    introduce(hub, rank).close()
    assert events.failure() == JobFailure(f"rank {rank} on elsewhere is gone", rank=rank)
    wait_until(lambda: other.aborts == [f"rank {rank} on elsewhere is gone"])


def test_a_rank_that_does_not_come(start_hub: StartHub, join: Join) -> None:
    hub, events = start_hub(4, join_timeout_s=0.3)
    joined = join(hub, 2)
    assert events.failure(2) == JobFailure("rank 0, 1, 3 of 4 did not start in time")
    wait_until(lambda: joined.aborts)


@pytest.mark.timing
def test_a_rank_that_is_killed_is_noticed_at_once(start_hub: StartHub, join: Join, start_program: StartProgram) -> None:
    hub, events = start_hub(2)
    join(hub, 0)
    process = start_member(start_program, str(hub.address), 1)
    started = time.monotonic()
    process.kill()
    assert events.failure(3) == JobFailure(f"rank 1 on {HOST} is gone", rank=1)
    assert time.monotonic() - started < 1


@pytest.mark.timing
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_is_noticed(
    start_hub: StartHub, join: Join, start_program: StartProgram, rank: int
) -> None:
    """Within three seconds; its connection stays open, and nothing else tells."""
    hub, events = start_hub(2)
    other = join(hub, 1 - rank)
    other.member.serve()
    process = start_member(start_program, str(hub.address), rank)
    started = time.monotonic()
    stop(process)
    failure = events.failure(3.5)
    assert time.monotonic() - started < 3
    assert failure.rank == rank
    assert failure.message.startswith(f"rank {rank} on {HOST} has not been heard of for 2.")
    wait_until(lambda: other.aborts == [failure.message])


def test_a_collective_that_never_completes_is_noticed(start_hub: StartHub, join: Join) -> None:
    """Every rank lives and speaks; none gets on."""
    hub, events = start_hub(2)
    with introduce(hub, 0) as zero, introduce(hub, 1) as one:
        zero.sendall(beat(phase="waiting", seconds=1.9))
        one.sendall(beat(phase="waiting", seconds=1.8))
        failure = events.failure(3)
    assert failure.rank is None
    assert failure.message.endswith("a collective never completed")


@pytest.mark.slow
def test_a_hub_that_was_stopped_itself_blames_nobody(start_hub: StartHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a laptop's lid, or all processes of a container: its clock has gone on, nobody could speak."""
    clock, ahead = time.monotonic, [0.0]
    monkeypatch.setattr("briton.ranks.hub.time", SimpleNamespace(monotonic=lambda: clock() + ahead[0]))
    hub, events = start_hub(1)
    with introduce(hub, 0) as member:
        member.sendall(beat())
        events.assert_none()
        ahead[0] = 30.0
        events.assert_none(1.0)
        assert events.failure(3).message.startswith("rank 0 on elsewhere has not been heard of for 2.")


# What members hear.


def test_drain_is_for_rank_0(start_hub: StartHub, join: Join) -> None:
    hub, _ = start_hub(2)
    one = join(hub, 1)
    wait_until(lambda: one.member.all_stats())
    assert not hub.drain()
    zero = join(hub, 0)
    wait_until(lambda: len(one.member.all_stats()) == 2)
    for count in (1, 2):
        assert hub.drain()
        wait_until(lambda: len(zero.drains) == count)  # noqa: B023


def test_every_rank_knows_what_all_say_of_themselves(start_hub: StartHub, join: Join) -> None:
    hub, _ = start_hub(2)
    joined = [join(hub, rank) for rank in (1, 0)]
    for member in (one.member for one in joined):
        member.own_stats = lambda rank=member.rank: RankStats(rank, weights_bytes=100 + rank, step_s=0.5)  # type: ignore[misc]
    wait_until(lambda: all([s.weights_bytes for s in one.member.all_stats()] == [100, 101] for one in joined))
    for one in joined:
        stats = one.member.all_stats()
        assert [(entry.rank, entry.host, entry.step_s) for entry in stats] == [(0, HOST, 0.5), (1, HOST, 0.5)]
        assert all(entry.pid > 0 and entry.pss_bytes > 1 << 20 for entry in stats)
    assert hub.processes() == [ProcessId.of(os.getpid())] * 2


@pytest.mark.slow
def test_a_member_in_the_middle_of_a_phase(start_hub: StartHub, join: Join) -> None:
    """Progress reaches the hub: a rank that computes for too long is named."""
    hub, events = start_hub(1)
    joined = join(hub, 0)
    joined.member.serve()
    joined.member.progress.enter(Phase.COMPUTING)
    failure = events.failure(4)
    assert failure.rank == 0
    assert "without reaching the next collective" in failure.message


# A hub that is gone.


def test_without_its_hub_a_rank_ends_and_takes_those_of_its_host_along(start_program: StartProgram) -> None:
    """A rank that is stopped could not end by itself, and nobody else knows of it."""
    hub = start_program(HUB)
    address = first_line(hub)
    zero, one = (start_member(start_program, address, rank) for rank in (0, 1))
    stop(one)
    hub.kill()
    assert zero.wait(5) == 1
    assert one.wait(5) == -signal.SIGKILL
    assert zero.stderr is not None
    assert "the job's hub is gone" in zero.stderr.read()


@pytest.mark.timing
@pytest.mark.slow
def test_a_hub_that_is_stopped_is_as_good_as_gone(start_program: StartProgram) -> None:
    hub = start_program(HUB)
    address = first_line(hub)
    members = [start_member(start_program, address, rank) for rank in (0, 1)]
    started = time.monotonic()
    stop(hub)
    wait_until(lambda: not any(is_running(member.pid) for member in members), 5)
    assert time.monotonic() - started < 3


def test_a_closed_hub_tells_members_in_this_process(start_hub: StartHub, join: Join, kills: list[int]) -> None:
    hub, _ = start_hub(2)
    joined = [join(hub, 0), join(hub, 1)]
    wait_until(lambda: all(len(one.member.all_stats()) == 2 for one in joined))
    hub.close()
    wait_until(lambda: all(len(one.aborts) == 1 for one in joined))
    assert all("the job's hub is gone" in one.aborts[0] for one in joined)
    assert kills == [os.getpid()] * 2
