"""When a job is taken for failed, and when it is merely slow, loading or idle."""

from __future__ import annotations

import pytest

from briton.ranks.failure_rules import LOADING_SILENCE_S, PATIENCE, SILENCE_S, STUCK_S, RankState, find_failure
from briton.ranks.progress import Phase, Progress, Snapshot

IDLE, COMPUTING, WAITING = Phase.IDLE, Phase.COMPUTING, Phase.WAITING


def state(
    phase: Phase = IDLE,
    seconds: float = 0.0,
    *,
    silence_s: float = 0.1,
    expected_s: float = 0.001,
    is_serving: bool = True,
    host: str = "left",
) -> RankState:
    return RankState(host, silence_s, is_serving, Snapshot(phase, seconds, 7, expected_s))


def found(*states: RankState) -> tuple[str, int | None] | None:
    failure = find_failure(dict(enumerate(states)))
    return None if failure is None else (failure.message, failure.rank)


def test_a_silent_rank_is_named() -> None:
    silent = state(WAITING, 0.1, silence_s=SILENCE_S + 0.1, host="right")
    assert found(state(WAITING, 2.0), silent) == ("rank 1 on right has not been heard of for 2.1 s", 1)
    assert found(state(), state(silence_s=SILENCE_S - 0.1)) is None


def test_an_idle_rank_is_missed_as_well() -> None:
    assert found(state(silence_s=SILENCE_S + 1), state()) == ("rank 0 on left has not been heard of for 3.0 s", 0)


def test_loading_takes_its_time() -> None:
    loading = state(silence_s=LOADING_SILENCE_S - 1, is_serving=False)
    assert found(loading, loading) is None
    assert found(state(WAITING, 3600), loading) is None  # warm-up steps wait for ranks that load
    assert found(state(COMPUTING, 3600), loading) is None
    lost = state(silence_s=LOADING_SILENCE_S + 1, is_serving=False)
    assert found(state(), lost) == ("rank 1 on left has not been heard of for 61.0 s", 1)


def test_a_rank_that_serves_must_speak_while_others_load() -> None:
    failure = found(state(silence_s=SILENCE_S + 1), state(is_serving=False))
    assert failure is not None
    assert failure[1] == 0


def test_all_idle() -> None:
    assert found(state(IDLE, 3600), state(IDLE, 3600)) is None


@pytest.mark.parametrize("others", [WAITING, IDLE], ids=["lost sum", "lost broadcast"])
def test_a_collective_that_never_completes(others: Phase) -> None:
    """All wait in a sum; or rank 0 waits in a step that the others, idle, have never heard of."""
    assert found(state(WAITING, STUCK_S), state(others, STUCK_S + 9, silence_s=0)) == (
        "the ranks have waited for each other for 2.1 s: a collective never completed",
        None,
    )
    assert found(state(WAITING, STUCK_S - 0.2), state(others, STUCK_S + 9)) is None
    assert found(state(WAITING, STUCK_S + 9), state(others, 0.01)) is None  # it has just got there


def test_time_since_the_last_word_counts() -> None:
    assert found(state(WAITING, 1.5, silence_s=0.6), state(WAITING, 1.5, silence_s=0.6)) is not None
    assert found(state(WAITING, 1.5, silence_s=0.4), state(WAITING, 1.5, silence_s=0.4)) is None


def test_waiting_for_a_rank_that_computes() -> None:
    """As long as the one computes, the others wait in good order."""
    assert found(state(WAITING, STUCK_S - 0.2), state(COMPUTING, STUCK_S - 0.2)) is None


def test_a_computation_without_end() -> None:
    assert found(state(WAITING, 2.0), state(COMPUTING, STUCK_S + 0.2, host="right", silence_s=0)) == (
        "rank 1 on right has computed for 2.2 s without reaching the next collective",
        1,
    )
    assert found(state(WAITING, 0.1), state(COMPUTING, STUCK_S - 0.1, silence_s=0)) is None


def test_patience_grows_with_what_computing_has_taken() -> None:
    """A prefill may take many times what steps took so far, on any rank."""
    slow = state(WAITING, 8.0, expected_s=0.2)
    within, beyond = PATIENCE * 0.2 - 0.5, PATIENCE * 0.2 + 0.5
    assert found(slow, state(COMPUTING, within)) is None
    failure = found(slow, state(COMPUTING, beyond))
    assert failure is not None
    assert failure[1] == 1
    assert found(state(WAITING, 8.0), state(COMPUTING, within)) is not None


def test_nobody() -> None:
    assert find_failure({}) is None


def test_progress_counts_phases_and_the_longest_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress()
    for phase, seconds in [(COMPUTING, 0.5), (WAITING, 9.0), (COMPUTING, 0.25), (IDLE, 20.0)]:
        progress.enter(phase)
        now[0] += seconds
    assert progress.snapshot() == Snapshot(IDLE, 20.0, 4, 0.5)


def test_a_long_prompt_after_a_short_warm_up_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a warm-up of 32 tokens one unchunked prompt of 8,192 ended the job, and the restart met it again."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress()
    progress.begin_step(32)
    for phase, seconds in [(COMPUTING, 0.02), (WAITING, 0.1)]:
        progress.enter(phase)
        now[0] += seconds
    progress.begin_step(8192)
    progress.enter(COMPUTING)
    now[0] += 256 * 0.02 * 5  # five times what its tokens alone would take: their attention
    here = RankState("b", 0.0, True, progress.snapshot())
    assert found(state(WAITING, 25.0), here) is None
    now[0] += 256 * 0.02 * PATIENCE
    assert found(state(WAITING, 125.0), RankState("b", 0.0, True, progress.snapshot())) is not None
