"""Steps that ranks compute together, where ranks are threads: who gets which columns, and who waits when."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from briton.local.plan import StepInputs
from briton.local.ranks.steps import LeadingForward, follow
from briton.model.sharding import Shard, Span
from briton.ranks.communicator import Communicator, RankCounters
from briton.ranks.progress import Phase, Progress
from tests.local.ranks.test_step_buffer import step_of
from tests.processes import wait_until

SPANS = (Span(0, 5), Span(5, 8), Span(8, 10))  # of a vocabulary of 10
SHARDS = [Shard(Span(0, 1), Span(0, 1), Span(0, 1), span) for span in SPANS]


class _Recorded(Progress):
    """Keeps every phase."""

    def __init__(self) -> None:
        super().__init__()
        self.phases: list[Phase] = []

    def enter(self, phase: Phase) -> None:
        super().enter(phase)
        self.phases.append(phase)


class Threads:
    """One rank's communicator; ranks are threads of this process."""

    def __init__(self, rank: int, ranks: list[Threads]) -> None:
        self.rank = rank
        self.progress = _Recorded()
        self.counters = RankCounters()
        self._ranks = ranks
        self._inbox: queue.SimpleQueue[NDArray[np.int32]] = queue.SimpleQueue()
        self._logits: queue.SimpleQueue[NDArray[np.float32]] = queue.SimpleQueue()

    def broadcast(self, buffer: NDArray[np.int32]) -> None:
        if self.rank == 0:
            for other in self._ranks[1:]:
                other._inbox.put(buffer.copy())
        else:
            self.await_broadcast(buffer)

    def await_broadcast(self, buffer: NDArray[np.int32]) -> None:
        buffer[:] = self._inbox.get(timeout=5)

    def send_logits(self, logits: NDArray[np.float32]) -> None:
        self._logits.put(logits.copy())

    def receive_logits(self, buffers: list[NDArray[np.float32]]) -> None:
        for buffer, other in zip(buffers, self._ranks[1:], strict=True):
            buffer[:] = other._logits.get(timeout=5)


def forward_of(span: Span) -> Callable[[StepInputs], NDArray[np.float32]]:
    """A model whose logit of token t in row r is 100 * (that row's token) + t: this rank's columns of it."""

    def forward(inputs: StepInputs) -> NDArray[np.float32]:
        rows = inputs.token_ids[inputs.sampled_rows].astype(np.float32)
        return np.asarray(100 * rows[:, None] + np.arange(span.begin, span.end, dtype=np.float32), np.float32)

    return forward


@pytest.fixture
def ranks() -> list[Threads]:
    made: list[Threads] = []
    made += [Threads(rank, made) for rank in range(len(SPANS))]
    return made


@pytest.fixture
def leading(ranks: list[Threads]) -> Iterator[LeadingForward]:
    """Rank 0's function; the others follow until it is closed."""
    followers = [
        threading.Thread(target=follow, args=(communicator, forward_of(span)))
        for communicator, span in list(zip(ranks, SPANS, strict=True))[1:]
    ]
    for thread in followers:
        thread.start()
    leading = LeadingForward(cast("Communicator", ranks[0]), forward_of(SPANS[0]), SHARDS)
    yield leading
    leading.close()
    for thread in followers:
        thread.join(5)
        assert not thread.is_alive()


def step_with_rows(num_tokens: int, rows: list[int]) -> StepInputs:
    return step_of(num_tokens)._replace(sampled_rows=np.array(rows, np.int64))


def test_every_rank_computes_its_columns(leading: LeadingForward) -> None:
    """Steps of more rows and of fewer, one after the other."""
    for num_tokens, rows in [(4, [3]), (40, list(range(40))), (2000, [5, 1999]), (1, [0])]:
        logits = leading(step_with_rows(num_tokens, rows))
        tokens = 7.0 * np.array(rows)  # step_of's
        assert np.array_equal(logits, 100 * tokens[:, None] + np.arange(10))
        assert logits.dtype == np.float32


def test_a_step_without_logits(leading: LeadingForward, ranks: list[Threads]) -> None:
    """A part of a long prompt: nothing is sent, and nothing is waited for."""
    assert leading(step_with_rows(30, [])).shape == (0, 10)
    assert all(communicator._logits.empty() for communicator in ranks)
    assert leading(step_with_rows(1, [0])).shape == (1, 10)


def test_where_each_rank_is_and_where_time_goes(leading: LeadingForward, ranks: list[Threads]) -> None:
    leading(step_with_rows(4, [3]))
    assert ranks[0].progress.phases == [Phase.WAITING, Phase.COMPUTING, Phase.WAITING, Phase.IDLE]
    for other in ranks[1:]:
        wait_until(lambda: other.progress.phases.count(Phase.IDLE) == 2)  # noqa: B023
        assert other.progress.phases == [Phase.IDLE, Phase.COMPUTING, Phase.WAITING, Phase.IDLE]
        assert other.counters.step_s > 0
        assert other.counters.broadcast_s == 0
    counters = ranks[0].counters
    assert 0 < counters.broadcast_s < counters.step_s
