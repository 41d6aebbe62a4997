"""Plain decode with the graphs of fixed size, and with the one of any size alone, taking turns in one process.

    .venv/bin/python benchmarks/bench_graphs.py [--rounds N] [--batches 1 4 8 16] [--tokens N]

Every ratio is of median decoded tokens a second, with over without. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import machine
from in_process import InProcess
from served_model import Limits, ServedModel, prepare
from workload import Workload

from briton.config.environment import load_environment
from briton.engine.types import ModelInfo
from briton.local.executor import LocalExecutor
from briton.local.model_runner import ModelRunner
from briton.local.padding import FIXED_SIZES
from briton.local.settings import LocalSettings
from briton.model.engine_dir import load_manifest
from briton.process.executors import create_executor

PROMPT_TOKENS = 32


def main() -> None:
    """Measure, print rates and the JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--tokens", type=int, default=96, help="output tokens of a request")
    arguments = parser.parse_args()
    limits = Limits(threads=machine.cores(), batch=max(arguments.batches))
    served = prepare(limits, load_environment())
    info = _info(served, limits)
    sides = {
        name: InProcess(_executor(served, limits, info, sizes))
        for name, sizes in (("with", tuple(FIXED_SIZES)), ("without", ()))
    }
    workloads = [Workload(f"b{batch}", batch, PROMPT_TOKENS, arguments.tokens) for batch in arguments.batches]
    rates: dict[tuple[str, str], list[float]] = {}
    print(f"{machine.describe()}; load {machine.load():.1f}; {limits}")
    try:
        for workload in workloads:
            for side in sides.values():
                side.run(replace(workload, output_tokens=8), 0)
        for number in range(1, arguments.rounds + 1):
            for workload in workloads:
                for name, side in sorted(sides.items(), reverse=number % 2 == 0):
                    rates.setdefault((workload.name, name), []).append(side.run(workload, number).decode_rate)
    finally:
        for side in sides.values():
            side.executor.shutdown()
    for (workload_name, name), values in rates.items():
        print(f"{workload_name:4} {name:8} {median(values):8.1f} tokens/s ({min(values):.1f} to {max(values):.1f})")
    ratios = {w.name: round(median(rates[w.name, "with"]) / median(rates[w.name, "without"]), 3) for w in workloads}
    print(json.dumps(ratios))


def _info(served: ServedModel, limits: Limits) -> ModelInfo:
    """Of the executor as it is served."""
    executor = create_executor(served.config, served.engine_dir)
    executor.shutdown()
    return replace(executor.info, max_batch_size=limits.batch)


def _executor(served: ServedModel, limits: Limits, info: ModelInfo, fixed_sizes: Sequence[int]) -> LocalExecutor:
    settings = LocalSettings(
        max_batch_size=limits.batch,
        max_num_tokens=limits.max_num_tokens,
        max_queue_size=info.max_queue_size,
        max_seq_len=info.max_seq_len,
        threads=limits.threads,
        kv_cache_tokens=limits.kv_cache_tokens,
    )
    runner = ModelRunner(served.engine_dir, load_manifest(served.engine_dir), settings, fixed_sizes=fixed_sizes)
    runner.warm_up(limits.batch, runner.forward)
    return LocalExecutor(info, runner.forward, policy=settings.policy)


if __name__ == "__main__":
    main()
