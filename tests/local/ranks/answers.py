"""A program for ranks: greedy answers and logits of an engine, the steps being the same whatever the number of ranks.

mpiexec -n N python -m tests.local.ranks.answers ENGINE_DIR OUT.npz NUM_PROMPTS MAX_TOKENS
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from briton.engine.types import ModelInfo
from briton.local import loader
from briton.local.executor import LocalExecutor
from briton.local.plan import Forward, StepInputs
from briton.local.settings import LocalSettings
from briton.model.engine_dir import load_manifest
from tests.local.ranks.mpi import communicator, world
from tests.request_runner import RequestRunner

COLUMNS = 64  # of each row of logits are kept, spread over the vocabulary
SETTINGS = LocalSettings(
    max_batch_size=32,
    max_num_tokens=128,  # prompts are computed in chunks
    max_queue_size=1000,
    max_seq_len=256,
    kv_cache_tokens=8192,
    precision="f32",
)


class Recorded:
    """A forward function whose first step waits until all requests are there; keeps some columns of what it
    computes."""

    def __init__(self, forward: Forward, vocab_size: int) -> None:
        self.first_is_here, self.all_are_here = threading.Event(), threading.Event()
        self.logits: list[NDArray[np.float32]] = []
        self._forward = forward
        self._columns = np.linspace(0, vocab_size - 1, COLUMNS).astype(np.int64)

    def __call__(self, inputs: StepInputs) -> NDArray[np.float32]:
        self.first_is_here.set()
        assert self.all_are_here.wait(60)
        logits = self._forward(inputs)
        self.logits.append(logits[:, self._columns].copy())
        return logits


def prompts(count: int, vocab_size: int) -> list[tuple[int, ...]]:
    """Random ones of 1 to 60 tokens; every fourth begins as one before it does, so that prefixes are found."""
    generator = np.random.default_rng(7)
    made: list[tuple[int, ...]] = []
    for number in range(count):
        tokens = tuple(generator.integers(3, vocab_size, generator.integers(1, 61)).tolist())
        made.append(made[number // 2] + tokens if number % 4 == 3 else tokens)
    return made


def main(directory: Path, out: Path, num_prompts: int, max_tokens: int) -> None:
    """Rank 0 writes `tokens` [prompts, max_tokens] and `logits` [rows, COLUMNS]."""
    ranks = communicator(world())
    if ranks is not None and ranks.rank > 0:
        loader.follow_local_executor(directory, SETTINGS, ranks, lambda: None)
        return
    recorded: list[Recorded] = []

    def start(info: ModelInfo, forward: Forward, **options: Any) -> LocalExecutor:
        recorded.append(Recorded(forward, info.vocab_size))
        return LocalExecutor(info, recorded[0], **options)

    with patch.object(loader, "LocalExecutor", start):
        executor = loader.load_local_executor(directory, SETTINGS, "model", ranks)
    runner = RequestRunner(executor)
    results = [runner.submit((1,), max_tokens=max_tokens)]
    assert recorded[0].first_is_here.wait(60)
    vocab_size = load_manifest(directory, 0).model.vocab_size
    results += [runner.submit(prompt, max_tokens=max_tokens) for prompt in prompts(num_prompts, vocab_size)]
    recorded[0].all_are_here.set()
    runner.finish()
    executor.shutdown()
    np.savez(out, tokens=[r.tokens() for r in results], logits=np.concatenate(recorded[0].logits))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
