"""How long a served engine of two ranks takes from a fault to refused requests, and to serving again."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from serving import Serving

from briton.process.probes import engine_is_serving
from briton.v1 import engine_pb2 as pb
from briton.v1 import engine_pb2_grpc as pb_grpc

_REQUESTS = 4
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Fault:
    """What became of one fault, in seconds from it."""

    name: str
    detect_s: float  # until the last open request has ended with UNAVAILABLE
    gone_s: float  # until no process of the job is left
    recover_s: float  # until the same requests succeed


class Job:
    """A served engine of several ranks."""

    def __init__(self, serving: Serving) -> None:
        self._address = serving.engine

    def stats(self) -> pb.Stats:
        """GetStats, with what all ranks say of themselves."""
        deadline = time.monotonic() + _TIMEOUT_S
        while time.monotonic() < deadline:
            with self._channel() as channel:
                stats = pb_grpc.EngineStub(channel).GetStats(pb.GetStatsRequest(), timeout=5)
            if len(stats.ranks) > 1 and all(rank.pss_bytes for rank in stats.ranks):
                return stats
            time.sleep(0.2)
        raise TimeoutError("the ranks say nothing of themselves")

    def suffer(self, signum: signal.Signals, rank: int) -> Fault:
        """Signal a rank in the middle of requests."""
        pids = {each.rank: each.pid for each in self.stats().ranks}
        ends: list[float] = []
        threads = [threading.Thread(target=self._request, args=(number, ends)) for number in range(_REQUESTS)]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        started = time.monotonic()
        os.kill(pids[rank], signum)
        for thread in threads:
            thread.join(_TIMEOUT_S)
        if len(ends) < _REQUESTS:
            raise AssertionError(f"{_REQUESTS - len(ends)} requests did not end with UNAVAILABLE")
        while any(_is_running(pid) for pid in pids.values()):
            _check(started)
        gone = time.monotonic() - started
        while not engine_is_serving(self._address):
            _check(started)
        with self._channel() as channel:
            list(pb_grpc.EngineStub(channel).Generate(_prompt(0, 8), timeout=_TIMEOUT_S))
        recovered = time.monotonic() - started
        return Fault(f"{signum.name} rank {rank}", max(ends) - started, gone, recovered)

    def _request(self, number: int, ends: list[float]) -> None:
        with self._channel() as channel:
            try:
                list(pb_grpc.EngineStub(channel).Generate(_prompt(number, 1500), timeout=_TIMEOUT_S))
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNAVAILABLE and error.details():
                    ends.append(time.monotonic())

    def _channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self._address, options=[("grpc.enable_http_proxy", 0)])


def measure_faults(config: Path, faults: list[tuple[signal.Signals, int]]) -> tuple[pb.Stats, list[Fault]]:
    """Serve the config; what its ranks hold when it has started, and what became of each fault."""
    with Serving(config) as serving:
        job = Job(serving)
        stats = job.stats()
        return stats, [job.suffer(signum, rank) for signum, rank in faults]


def _prompt(number: int, max_tokens: int) -> pb.GenerateRequest:
    sampling = pb.SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True)
    return pb.GenerateRequest(text=f"Story number {number}. Once upon a time", sampling=sampling)


def _is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _check(started: float) -> None:
    if time.monotonic() - started > _TIMEOUT_S:
        raise TimeoutError("the job did not come back")
    time.sleep(0.02)
