"""`briton serve` under load: streamed chat completions over HTTP, beside the same requests in-process, taking turns.

    .venv/bin/python benchmarks/bench_serving.py [--quick] [--rounds N]

N clients send a prompt of 128 tokens each at the same time and read 128 streamed tokens each, for N = 1, 4 and 16. The
ratio of output tokens a second to the executor's alone is what HTTP, gRPC and text cost. The last line is one JSON
document; its ttft and itl without a suffix are those at 16.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from dataclasses import dataclass, field
from statistics import median

import machine
import numpy as np
from chat_workload import ChatWorkload
from in_process import InProcess
from served_model import Limits, prepare
from serving import Serving
from stream_client import Stream, chat

from briton.config.environment import load_environment
from briton.process.executors import create_executor

CONCURRENCIES = (1, 4, 16)
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 128
ROUNDS, QUICK_ROUNDS = 7, 3
QUICK_S = 45.0  # after which no further round starts


@dataclass
class Figures:
    """What the rounds at one concurrency gave."""

    served: list[float] = field(default_factory=list)  # output tokens a second
    in_process: list[float] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)  # by process: engine, gateway, client
    output_tokens: int = 0

    @property
    def ratio(self) -> float:
        """Served over in-process throughput, of medians."""
        return median(self.served) / median(self.in_process)

    def time_to_first_token_ms(self, percent: float) -> float:
        """A percentile over all streams."""
        return 1e3 * float(np.percentile([stream.time_to_first_token for stream in self.streams], percent))

    def inter_token_ms(self, percent: float) -> float:
        """A percentile over all gaps of all streams."""
        gaps = [gap for stream in self.streams for gap in stream.inter_token_times]
        return 1e3 * float(np.percentile(gaps, percent))


def main() -> None:
    """Measure, print a table and the JSON document."""
    began = time.perf_counter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing started here is left running
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under 60 s: fewer rounds, without N = 4")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, quick {QUICK_ROUNDS}")
    parser.add_argument("--threads", type=int, default=machine.cores())
    arguments = parser.parse_args()
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else ROUNDS)
    deadline = began + QUICK_S if arguments.quick else math.inf
    concurrencies = (1, 16) if arguments.quick else CONCURRENCIES

    served = prepare(Limits(threads=arguments.threads), load_environment())
    ours = InProcess(create_executor(served.config, served.engine_dir))
    workload = ChatWorkload(served.engine_dir, served.config.served_model_name)
    try:
        with Serving(served.config_path) as serving:
            serving.settle()
            machine.settle()
            print(f"{machine.describe()}; load {machine.load():.1f}")
            figures = measure(concurrencies, workload, ours, serving, rounds, deadline)
    finally:
        ours.executor.shutdown()
    show(figures)
    result: dict[str, float] = {}
    for number, each in figures.items():
        result[f"throughput_c{number}_vs_inprocess"] = round(each.ratio, 3)
        suffix = "" if number == max(concurrencies) else f"_c{number}"
        result[f"ttft_p50_ms{suffix}"] = round(each.time_to_first_token_ms(50), 2)
        result[f"itl_p50_ms{suffix}"] = round(each.inter_token_ms(50), 2)
    print(json.dumps(result))


def measure(
    concurrencies: tuple[int, ...],
    workload: ChatWorkload,
    ours: InProcess,
    serving: Serving,
    rounds: int,
    deadline: float,
) -> dict[int, Figures]:
    """In a round, each concurrency is run over HTTP and in-process, by turns first. Round 0 warms up.

    No round starts that would probably end after `deadline`, a time.perf_counter(); round 1 always does.
    """
    figures = {number: Figures() for number in concurrencies}
    longest = 0.0
    for number in range(rounds + 1):
        began = time.perf_counter()
        if number > 1 and began + longest > deadline:
            print(f"stopped after {number - 1} of {rounds} rounds: the machine is slow", file=sys.stderr)
            break
        for concurrency, into in figures.items():
            output_tokens = OUTPUT_TOKENS if number else 8
            prompts = [workload.prompt(PROMPT_TOKENS, [number, concurrency, i]) for i in range(concurrency)]
            trial = Figures()
            for over_http in (True, False) if number % 2 else (False, True):
                if over_http:
                    run_served(workload, prompts, output_tokens, serving, trial if number == 0 else into)
                else:
                    rate = ours.generate([ids for _, ids in prompts], output_tokens).output_rate
                    (trial if number == 0 else into).in_process.append(rate)
        longest = max(longest, time.perf_counter() - began)
    return figures


def run_served(
    workload: ChatWorkload, prompts: list[tuple[str, list[int]]], output_tokens: int, serving: Serving, into: Figures
) -> None:
    """Once over HTTP; checks that it was the workload that was asked for."""
    before = serving.cpu_seconds()
    answers = chat(serving.host, serving.port, [workload.body(text, output_tokens) for text, _ in prompts])
    after = serving.cpu_seconds()
    for stream, (_, ids) in zip(answers.streams, prompts, strict=True):
        if (stream.prompt_tokens, stream.output_tokens) != (len(ids), output_tokens):
            raise RuntimeError(
                f"served {stream.prompt_tokens} + {stream.output_tokens} tokens, not {len(ids)} + {output_tokens}"
            )
    into.served.append(answers.output_rate)
    into.streams += answers.streams
    into.output_tokens += len(prompts) * output_tokens
    spent = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
    for name, seconds in {**spent, "client": answers.client_cpu_s}.items():
        into.cpu_s[name] = into.cpu_s.get(name, 0.0) + seconds


def show(figures: dict[int, Figures]) -> None:
    """A few lines for each concurrency."""
    for number, each in figures.items():
        print(f"{number} at once, {len(each.served)} rounds, a ratio of {each.ratio:.3f}:")
        for name, rates in (("served", each.served), ("in-process", each.in_process)):
            print(f"  {name:10} {median(rates):7.1f} output tokens/s ({min(rates):.1f} to {max(rates):.1f})")
        for name, of in (("first token", each.time_to_first_token_ms), ("between tokens", each.inter_token_ms)):
            print(f"  {name}: p50 {of(50):.2f} ms, p99 {of(99):.2f} ms")
        costs = ", ".join(f"{name} {1e6 * s / each.output_tokens:.0f}" for name, s in sorted(each.cpu_s.items()))
        print(f"  CPU microseconds an output token: {costs}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
