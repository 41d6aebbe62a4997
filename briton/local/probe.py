"""Steps that no request asked for: to warm the model up, and to measure what a step costs on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
from numpy.typing import NDArray

from briton.local.plan import StepInputs
from briton.local.settings import BLOCK_SIZE

Forward = Callable[[StepInputs], NDArray[np.float32]]


def first_tokens(num_sequences: int) -> StepInputs:
    """The first token of each sequence, in a block each."""
    ones, steps = np.ones(num_sequences, np.int64), np.arange(num_sequences + 1, dtype=np.int32)
    return StepInputs(
        token_ids=ones,
        position_ids=0 * ones,
        past_lens=0 * steps[1:],
        subsequence_begins=steps,
        block_indices=steps[:-1],
        block_indices_begins=steps,
        max_context_len=1,
        sampled_rows=steps[:-1].astype(np.int64),
        qq_bias=np.zeros(0, np.uint8),
        qq_bias_begins=0 * steps,
    )


def one_sequence(num_tokens: int, num_context_tokens: int = 0) -> StepInputs:
    """So many tokens of one sequence, in the cache's first blocks, all of whose logits are wanted, as of a draft's."""
    end = num_context_tokens + num_tokens
    num_blocks = -(-end // BLOCK_SIZE)
    return StepInputs(
        token_ids=np.ones(num_tokens, np.int64),
        position_ids=np.arange(num_context_tokens, end, dtype=np.int64),
        past_lens=np.array([num_context_tokens], np.int32),
        subsequence_begins=np.array([0, num_tokens], np.int32),
        block_indices=np.arange(num_blocks, dtype=np.int32),
        block_indices_begins=np.array([0, num_blocks], np.int32),
        max_context_len=end,
        sampled_rows=np.arange(num_tokens, dtype=np.int64),
        qq_bias=np.zeros(0, np.uint8),
        qq_bias_begins=np.zeros(2, np.int32),
    )


class StepTimer:
    """Times steps of one sequence."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._previous: tuple[int, int] | None = None

    def __call__(self, num_tokens: int, num_context_tokens: int) -> float:
        """Seconds of a step that follows another of its size."""
        if self._previous != (num_tokens, num_context_tokens):
            self.once(num_tokens, num_context_tokens)
        return self.once(num_tokens, num_context_tokens)

    def once(self, num_tokens: int, num_context_tokens: int) -> float:
        """Seconds of a step, whatever came before."""
        inputs = one_sequence(num_tokens, num_context_tokens)
        self._previous = (num_tokens, num_context_tokens)
        started = time.perf_counter()
        self._forward(inputs)
        return time.perf_counter() - started

    def switch(self, sizes: tuple[int, int], repeats: int = 3) -> float:
        """Seconds that a step takes longer when the one before had another of these two sizes."""
        steady = sum(median(self(size, 0) for _ in range(repeats)) for size in sizes)
        turns = [self.once(size, 0) for _ in range(repeats) for size in sizes]
        return max(0.0, (median(turns[0::2]) + median(turns[1::2]) - steady) / 2)
