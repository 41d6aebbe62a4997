"""Tensor-parallel ranks: two of one thread each against one of two threads, in turns; and what faults cost.

    .venv/bin/python benchmarks/bench_ranks.py [--quick] [--rounds N]

Steps are decode steps at 100 tokens of context, at batch 1 and 16, of SmolLM2 and of a random model of a billion
weights, int8. `step_ratio_1b` is the time of a step on two ranks over that on one: the worse of both batches'
medians. `broadcast_share` is what rank 0 spends in laying a step out and telling the others, of a step of SmolLM2
(the worse batch); `logits_share` the same in collecting their logits, with the wait for the slower rank. `identical`:
greedy tokens in float32 on one rank and on two. `detect_s` and `recover_s` are the worst of killing and of stopping
rank 1. `weights_share_rank1` is rank 1's share of what loading the weights added to both ranks' proportional set
sizes. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import machine
import yaml
from peer_process import LineProcess
from random_model import BILLION, write_random_model
from rank_faults import measure_faults
from served_model import Limits, prepare
from workload import Workload

from briton.config.environment import Environment, load_environment
from briton.config.loader import load_config
from briton.ranks.mpiexec import find_mpiexec
from briton_engine_builder import build_engine

CONTEXT_TOKENS = 100
BATCHES = (1, 16)
SIZES = (1, 2)
FAULTS = [(signal.SIGKILL, 1), (signal.SIGSTOP, 1)]


class Step(NamedTuple):
    """A step on two ranks: medians of rounds, and shares of its time on rank 0."""

    ratio: float  # its time over that of a step on one rank
    broadcast: float
    logits: float


def main() -> None:
    """Measure, print tables and the JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and shorter answers")
    parser.add_argument("--rounds", type=int, help="default: 9, or 5 with --quick")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (5 if arguments.quick else 9)
    tokens = 24 if arguments.quick else 64
    environment = load_environment()
    print(f"{machine.describe()}; load {machine.load():.1f}; {rounds} rounds")
    limits = Limits(threads=machine.cores())
    small = {size: prepare(replace(limits, ranks=size), environment).engine_dir for size in SIZES}
    exact = replace(limits, quantization="no_quant", precision="f32", kv_cache="f32")
    exact_dirs = {size: prepare(replace(exact, ranks=size), environment).engine_dir for size in SIZES}
    large = {size: _billion(environment, small[1], size) for size in SIZES}

    identical = _identical(exact_dirs, 20 if arguments.quick else 100)
    small_steps = _steps("SmolLM2", small, rounds, tokens)
    large_steps = _steps("1B", large, rounds, tokens)
    served = prepare(replace(limits, ranks=2), environment)
    stats, faults = measure_faults(served.config_path, FAULTS * (1 if arguments.quick else 3))
    for fault in faults:
        print(f"{fault.name}: {fault.detect_s:.2f} s to refused, {fault.gone_s:.2f} s to gone, {fault.recover_s:.1f} s")
    loaded = [rank.pss_bytes - rank.base_pss_bytes for rank in stats.ranks]
    print("loaded, MB of proportional set size by rank:", [round(size / 1e6) for size in loaded])
    print(
        json.dumps(
            {
                "identical": identical,
                "broadcast_share": round(max(step.broadcast for step in small_steps), 4),
                "broadcast_share_1b": round(max(step.broadcast for step in large_steps), 4),
                "logits_share": round(max(step.logits for step in small_steps), 4),
                "logits_share_1b": round(max(step.logits for step in large_steps), 4),
                "step_ratio_smollm2": round(max(step.ratio for step in small_steps), 3),
                "step_ratio_1b": round(max(step.ratio for step in large_steps), 3),
                "detect_s": round(max(fault.detect_s for fault in faults), 2),
                "recover_s": round(max(fault.recover_s for fault in faults), 1),
                "weights_share_rank1": round(loaded[1] / sum(loaded), 3),
            }
        )
    )


def _start(directory: Path, size: int, precision: str) -> LineProcess:
    """Both sides have the same threads in all."""
    side = str(Path(__file__).with_name("rank_side.py"))
    program = (sys.executable, side, str(directory), str(machine.cores()), precision)
    return LineProcess(f"{size} ranks", find_mpiexec().command(program, size))


def _identical(directories: dict[int, Path], num_prompts: int) -> bool:
    prompts = [prompt for i in range(num_prompts) for prompt in Workload("", 1, 8 + i, 0).prompts(i)]
    tokens = []
    for size, directory in directories.items():
        side = _start(directory, size, "f32")
        tokens.append(side.ask(prompts=prompts, max_tokens=16)["tokens"])
        side.close()
    print(f"float32, {num_prompts} prompts: identical {tokens[0] == tokens[1]}")
    return bool(tokens[0] == tokens[1])


def _steps(name: str, directories: dict[int, Path], rounds: int, tokens: int) -> list[Step]:
    """One for each batch."""
    sides = {size: _start(directory, size, "bf16") for size, directory in directories.items()}
    found = []
    try:
        for batch in BATCHES:
            workload = Workload("", batch, CONTEXT_TOKENS, tokens)
            runs: dict[int, list[dict[str, Any]]] = {size: [] for size in SIZES}
            for number in range(rounds + 1):
                for size in SIZES if number % 2 else reversed(SIZES):
                    answer = sides[size].ask(prompts=workload.prompts(number), max_tokens=tokens)
                    if number:  # the first one warms up
                        runs[size].append(answer)
            found.append(_compared(name, batch, runs))
    finally:
        for side in sides.values():
            side.close()
    return found


def _compared(name: str, batch: int, runs: dict[int, list[dict[str, Any]]]) -> Step:
    step = {size: [run["decode_s"] / run["num_steps"] for run in of] for size, of in runs.items()}
    ratio = median(two / one for one, two in zip(step[1], step[2], strict=True))
    total = sum(run["decode_s"] for run in runs[2])
    parts = {part: sum(run["counters"][part] for run in runs[2]) / total for part in runs[2][0]["counters"]}
    print(
        f"{name}, batch {batch}: a step of two ranks is {ratio:.2f} of one rank's "
        f"({median(step[2]) * 1e3:.1f} and {median(step[1]) * 1e3:.1f} ms); of it on rank 0: "
        f"sums, with waiting, {parts['all_reduce_s']:.1%}, broadcast {parts['broadcast_s']:.2%}, "
        f"logits {parts['gather_s']:.2%}, sampling and the like {1 - parts['step_s']:.1%}, "
        f"the rest is compute"
    )
    return Step(ratio, parts["broadcast_s"], parts["gather_s"])


def _billion(environment: Environment, tokenizer: Path, size: int) -> Path:
    folder = environment.cache_dir / "benchmarks"
    checkpoint = write_random_model(folder, BILLION, tokenizer)
    content = {
        "trt_llm": {
            "build": {
                "checkpoint_repository": {"source": "LOCAL", "repo": str(checkpoint)},
                "quantization_type": "weights_int8",
                "tensor_parallel_count": size,
            }
        }
    }
    path = folder / f"{BILLION.name}-{size}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return build_engine(load_config(path), environment)


if __name__ == "__main__":
    main()
