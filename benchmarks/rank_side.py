"""One side of `bench_ranks.py`: our executor on one rank or several, driven by a line of JSON at a time.

    mpiexec -n N python rank_side.py ENGINE_DIR THREADS PRECISION

    -> {"prompts": [[token ids] ...], "max_tokens": n}
    <- {"tokens": [[...] ...], "num_steps": n, "decode_s": s, "host_s": s, "counters": {...}}

All but the tokens count from the step after the last first token; `counters` is rank 0's.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from briton.engine.executor import Executor
from briton.engine.types import GenerationRequest, SamplingParams
from briton.local.loader import follow_local_executor, load_local_executor
from briton.local.settings import LocalSettings
from briton.ranks.communicator import Communicator
from briton.ranks.memory import proportional_set_size
from briton.ranks.progress import Progress


def main(directory: Path, threads: int, precision: str) -> None:
    """Answer until standard input ends."""
    import mpi4py

    mpi4py.rc.thread_level = "serialized"
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    settings = LocalSettings(
        max_batch_size=16,
        max_num_tokens=512,
        max_queue_size=256,
        max_seq_len=512,
        kv_cache_tokens=8192,
        threads=threads,
        precision="f32" if precision == "f32" else "bf16",
    )
    ranks = Communicator(world, Progress()) if world.Get_size() > 1 else None
    base = proportional_set_size()
    if world.Get_rank() > 0:
        assert ranks is not None
        follow_local_executor(directory, settings, ranks, lambda: world.send(proportional_set_size() - base, dest=0))
        return
    executor = load_local_executor(directory, settings, "benchmark", ranks)
    grown = [proportional_set_size() - base, *(world.recv(source=rank) for rank in range(1, world.Get_size()))]
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    print(json.dumps({"version": world.Get_size(), "loaded_bytes": grown}), file=out)
    for number, line in enumerate(sys.stdin):
        print(json.dumps(run(executor, ranks, number, **json.loads(line))), file=out)
    executor.shutdown()


def run(
    executor: Executor, ranks: Communicator | None, number: int, prompts: list[list[int]], max_tokens: int
) -> dict[str, Any]:
    """All prompts at once."""
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    tokens: list[list[int]] = [[] for _ in prompts]
    first = number * len(prompts) * 1000
    for i, prompt in enumerate(prompts):
        executor.submit(GenerationRequest(first + i, tuple(prompt), sampling, cache_salt=str(number)))
    unfinished, at_start = len(prompts), None
    while unfinished:
        for chunk in executor.await_chunks(60.0):
            if chunk.error is not None:
                raise chunk.error
            tokens[chunk.request_id - first] += chunk.token_ids
            unfinished -= chunk.is_final
        if at_start is None and all(tokens):
            at_start = executor.stats(), counters(ranks)
    assert at_start is not None
    before, now = at_start[0], executor.stats()
    return {
        "tokens": tokens,
        "num_steps": now.num_steps - before.num_steps,
        "decode_s": now.step_s - before.step_s,
        "host_s": now.host_s - before.host_s,
        "counters": {name: value - at_start[1].get(name, 0.0) for name, value in counters(ranks).items()},
    }


def counters(ranks: Communicator | None) -> dict[str, float]:
    """Seconds of rank 0 since its start."""
    return {} if ranks is None else {k: v for k, v in asdict(ranks.counters).items() if k.endswith("_s")}


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
