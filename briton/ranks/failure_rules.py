"""What is wrong with a job, judged from what its ranks say of themselves. Pure: no sockets, no clock of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from briton.ranks.progress import Phase, Snapshot

SILENCE_S = 2.0  # a serving rank that says nothing for so long is stopped, or cut off
LOADING_SILENCE_S = 60.0  # libraries that load a model may keep a process from saying anything
STUCK_S = 2.0  # all ranks wait for each other for so long: a collective that never completes
# A rank may compute alone for so many times what the longest computation between two collectives should take, by those
# of any rank so far and by the tokens of the step, and for STUCK_S in any case.
PATIENCE = 20.0


@dataclass(frozen=True, slots=True)
class RankState:
    """What the hub knows of one rank."""

    host: str
    silence_s: float  # since the last word from it
    is_serving: bool  # it has loaded its part
    progress: Snapshot  # when it last spoke
    loading_silence_s: float = LOADING_SILENCE_S  # that it is granted while it loads


@dataclass(frozen=True, slots=True)
class RankFailure:
    """What is wrong, in a sentence."""

    message: str
    rank: int | None = None  # the one to blame, where it is one


def find_failure(states: Mapping[int, RankState]) -> RankFailure | None:
    """What is wrong with the job; None where all is well."""
    for rank, state in states.items():
        limit = SILENCE_S if state.is_serving else state.loading_silence_s
        if state.silence_s > limit:
            return RankFailure(f"{name(rank, state.host)} has not been heard of for {state.silence_s:.1f} s", rank)
    if not states or not all(state.is_serving for state in states.values()):
        return None
    waits = [state.progress.seconds + state.silence_s for state in states.values()]
    phases = [state.progress.phase for state in states.values()]
    if Phase.COMPUTING not in phases:
        if Phase.WAITING in phases and min(waits) > STUCK_S:
            return RankFailure(
                f"the ranks have waited for each other for {min(waits):.1f} s: a collective never completed"
            )
        return None
    limit = max(STUCK_S, PATIENCE * max(state.progress.expected_s for state in states.values()))
    for (rank, state), seconds in zip(states.items(), waits, strict=True):
        if state.progress.phase is Phase.COMPUTING and seconds > limit:
            told = f"{name(rank, state.host)} has computed for {seconds:.1f} s without reaching the next collective"
            return RankFailure(told, rank)
    return None


def name(rank: int, host: str) -> str:
    """How a rank is named in messages."""
    return f"rank {rank} on {host}"
