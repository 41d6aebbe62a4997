"""Our executor against openvino-genai and llama.cpp: the same weights, threads and workloads, taking turns.

    .venv/bin/python benchmarks/bench_step.py [--quick] [--runs N]

Every ratio is of medians, ours over theirs, of tokens a second: above 1 we are faster. `--quick` (under 60 s) leaves
out llama.cpp and two workloads, and stops after fewer rounds on a slow machine. openvino-genai is
installed on first use; llama.cpp is there after `make peers`. The last line is one JSON document; a ratio is null where
the peer is not installed.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import NamedTuple, Protocol

import machine
from in_process import HostShare, InProcess
from peer_environment import install_peers
from peer_process import PeerProcess, start_peer
from served_model import Limits, prepare
from workload import Measured, Workload

from briton.config.environment import load_environment
from briton.process.executors import create_executor


class Side(Protocol):
    """One program that runs workloads."""

    def run(self, workload: Workload, run: int) -> Measured: ...


class Case(NamedTuple):
    """A workload, and which of its rates counts."""

    workload: Workload
    rate: Callable[[Measured], float]
    quick: bool = True
    note: str = "decoded tokens/s"


DECODE_B1 = Case(Workload("decode_b1", 1, 32, 96), lambda m: m.decode_rate)
DECODE_B4 = Case(Workload("decode_b4", 4, 32, 96), lambda m: m.decode_rate, quick=False)
DECODE_B16 = Case(Workload("decode_b16", 16, 32, 96), lambda m: m.decode_rate, quick=False)
PREFILL = Case(Workload("prefill", 1, 1024, 1), lambda m: m.prefill_rate(1024), note="prompt tokens/s")
BATCH16 = Case(Workload("batch16", 16, 128, 128), lambda m: m.output_rate, note="output tokens/s, 16 x (128+128)")
CASES = (DECODE_B1, DECODE_B4, DECODE_B16, PREFILL, BATCH16)
ROUNDS, QUICK_ROUNDS = 7, 3
QUICK_S = 45.0  # after which no further round starts
WARM_UP = 8  # output tokens of the run before the first round


class Table(NamedTuple):
    """Rates by case and side, one a round."""

    rates: dict[tuple[str, str], list[float]]
    host: dict[str, HostShare]  # ours, by case: the sum of all rounds

    def ratio(self, case: Case, peer: str) -> float | None:
        """Ours over the peer's, of medians."""
        theirs = self.rates.get((case.workload.name, peer))
        return round(median(self.rates[case.workload.name, "ours"]) / median(theirs), 3) if theirs else None


def main() -> None:
    """Measure, print a table and the JSON document."""
    began = time.perf_counter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing started here is left running
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, help=f"of all workloads (default {ROUNDS}, quick {QUICK_ROUNDS})")
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--quantization", default=Limits.quantization, help="quantization_type of our engine")
    arguments = parser.parse_args()
    limits = Limits(threads=arguments.threads, quantization=arguments.quantization)
    cases = [case for case in CASES if case.quick or not arguments.quick]
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    deadline = began + QUICK_S if arguments.quick else math.inf

    install_peers()
    served = prepare(limits, load_environment())
    names = ["genai"] if arguments.quick else ["genai", "llamacpp"]
    peers = {name: start_peer(name, limits.peer_arguments(name, served.gguf)) for name in names}
    started = [peer for peer in peers.values() if peer is not None]
    ours = InProcess(create_executor(served.config, served.engine_dir))
    try:
        print(f"{machine.describe()}; load {machine.load():.1f}; {limits}")
        for peer in started:
            print(f"{peer.name} {peer.version}")
        table = measure(cases, ours, started, rounds, deadline)
    finally:
        ours.executor.shutdown()
        for peer in started:
            peer.close()
    show(cases, table)
    batch16 = table.host[BATCH16.workload.name]
    result = {f"{case.workload.name}_vs_{name}": table.ratio(case, name) for case in cases for name in names}
    print(json.dumps({**result, "host_share": round(batch16.host_s / batch16.step_s, 4)}))


def measure(cases: list[Case], ours: InProcess, peers: list[PeerProcess], rounds: int, deadline: float) -> Table:
    """Interleaved: in a round every side does every workload once, side after side.

    No round starts that would probably end after `deadline`, a time.perf_counter(); the first always does.
    """
    sides: dict[str, Side] = {"ours": ours, **{peer.name: peer for peer in peers}}
    for case in cases:
        for side in sides.values():
            side.run(replace(case.workload, output_tokens=min(WARM_UP, case.workload.output_tokens)), 0)
    table = Table({}, {})
    longest = 0.0
    for number in range(1, rounds + 1):
        began = time.perf_counter()
        if number > 1 and began + longest > deadline:
            print(f"stopped after {number - 1} of {rounds} rounds: the machine is slow", file=sys.stderr)
            break
        for case in cases:
            before = ours.host_share()
            for name, side in sides.items():
                table.rates.setdefault((case.workload.name, name), []).append(
                    case.rate(side.run(case.workload, number))
                )
            spent = ours.host_share() - before
            table.host[case.workload.name] = table.host.get(case.workload.name, HostShare()) + spent
        longest = max(longest, time.perf_counter() - began)
    return table


def show(cases: list[Case], table: Table) -> None:
    """A line for each case and side: median, and the slowest and fastest run; then where our steps spend their time."""
    for (name, side), rates in table.rates.items():
        note = next(case.note for case in cases if case.workload.name == name)
        print(f"{name:12} {side:9} {median(rates):8.1f} ({min(rates):.1f} to {max(rates):.1f} in {len(rates)}) {note}")
    for name, host in table.host.items():
        step_ms, host_ms = 1e3 * host.step_s / host.num_steps, 1e3 * host.host_s / host.num_steps
        print(f"{name:12} step {step_ms:.2f} ms, of which host {host_ms:.2f} ms ({host_ms / step_ms:.1%})")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
