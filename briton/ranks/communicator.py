"""What ranks say to each other while they compute, over MPI: sums, steps, logits. Of MPI know this,
`rank_context`, which starts it, and `briton.trtllm.library`.

Every wait is a test and `sched_yield` in turns, never a blocking call: ranks that share cores would otherwise hold
them while they wait for each other (three ranks on two cores, a sum of 2 KB: 6 ms in MPICH's blocking call, 24 us so).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from briton.ranks.progress import Phase, Progress

_LOGITS_TAG = 1
_SPINS = 2000  # waits for the next step: so many yields, about a millisecond, then naps
_FIRST_NAP_S, _LONGEST_NAP_S = 50e-6, 2e-3


@dataclass(slots=True)
class RankCounters:
    """What this rank holds and where its time went: the fields of `RankStats` that are known here."""

    weights_bytes: int = 0
    kv_cache_bytes: int = 0
    base_pss_bytes: int = 0
    step_s: float = 0.0
    all_reduce_s: float = 0.0
    broadcast_s: float = 0.0
    gather_s: float = 0.0


class Communicator:
    """This rank among the others of its model, for one thread at a time. All ranks must make the same calls."""

    def __init__(self, comm: Any, progress: Progress) -> None:
        """`comm` is an mpi4py communicator of the model's ranks, of thread level SERIALIZED at least."""
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = comm
        self.progress = progress
        self.counters = RankCounters()
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        host = comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.ranks_on_host: int = host.Get_size()
        self._host = host

    def sum_over_ranks(self, part: NDArray[np.float32], total: NDArray[np.float32]) -> None:
        """Add `part` up over all ranks, into `total`. Called in the middle of a step."""
        started = time.perf_counter()
        self.progress.enter(Phase.WAITING)
        self._wait(self._comm.Iallreduce(part, total))
        self.progress.enter(Phase.COMPUTING)
        self.counters.all_reduce_s += time.perf_counter() - started

    def broadcast(self, buffer: NDArray[np.int32]) -> None:
        """Rank 0's buffer to all ranks, in place."""
        self._wait(self._comm.Ibcast(buffer))

    def await_broadcast(self, buffer: NDArray[np.int32]) -> None:
        """The same on a rank that has nothing else to do: soon tired of asking, it naps in between."""
        request = self._comm.Ibcast(buffer)
        for _ in range(_SPINS):
            if request.Test():
                return
            os.sched_yield()
        nap = _FIRST_NAP_S
        while not request.Test():
            time.sleep(nap)
            nap = min(2 * nap, _LONGEST_NAP_S)

    def send_logits(self, logits: NDArray[np.float32]) -> None:
        """This rank's columns of a step's logits [rows, its vocab], to rank 0."""
        started = time.perf_counter()
        self._wait(self._comm.Isend(logits, dest=0, tag=_LOGITS_TAG))
        self.counters.gather_s += time.perf_counter() - started

    def receive_logits(self, buffers: list[NDArray[np.float32]]) -> None:
        """On rank 0: what the other ranks send, one buffer [rows, that rank's vocab] for each in order."""
        started = time.perf_counter()
        requests = [
            self._comm.Irecv(buffer, source=rank, tag=_LOGITS_TAG) for rank, buffer in enumerate(buffers, start=1)
        ]
        for request in requests:
            self._wait(request)
        self.counters.gather_s += time.perf_counter() - started

    def smallest(self, value: int) -> int:
        """The smallest of all ranks' values."""
        return self._agree(self._comm, value, self._mpi.MIN)

    def sum_on_host(self, value: int) -> int:
        """The sum over the ranks on this rank's host."""
        return self._agree(self._host, value, self._mpi.SUM)

    def _agree(self, comm: Any, value: int, operation: Any) -> int:
        """For the time of loading, when one rank may be minutes behind another."""
        mine, result = np.array([value], np.int64), np.zeros(1, np.int64)
        request = comm.Iallreduce(mine, result, operation)
        while not request.Test():
            time.sleep(_LONGEST_NAP_S)
        return int(result[0])

    @staticmethod
    def _wait(request: Any) -> None:
        test, give_way = request.Test, os.sched_yield
        while not test():
            give_way()
