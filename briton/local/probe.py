"""Steps that no request asked for: to warm the model up, and to measure what a step costs on this machine."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace
from statistics import median

import numpy as np

from briton.local.lookahead.costs import LONG_CONTEXT, CostCurve
from briton.local.plan import Forward, StepInputs
from briton.local.settings import BLOCK_SIZE

SIZES = (1, 4, 8, 16, 24, 32, 64)  # tokens of the steps that are timed
MAX_SECONDS = 1.2
SLOW_STEP_SECONDS = 0.15
_REPEATS = 3


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


def measure_costs(
    forward: Forward, *, max_num_tokens: int, max_num_positions: int, fixed_sizes: Collection[int]
) -> CostCurve:
    """What steps with drafts cost, from real ones: at most `max_num_tokens` tokens, in a cache whose first
    `max_num_positions` slots are written. Takes about MAX_SECONDS, longer only where the smallest steps do."""
    sizes = [size for size in SIZES if size <= min(max_num_tokens, max_num_positions // 2)]
    timer = StepTimer(forward)
    curve = CostCurve.measure(
        timer,
        sizes,
        long_context=min(LONG_CONTEXT, max_num_positions - sizes[-1]),
        fixed_sizes=sorted(fixed_sizes),
        max_seconds=MAX_SECONDS,
    )
    changing = [size for size in sizes if size not in fixed_sizes][:2]
    return replace(curve, switch_seconds=timer.switch(*changing)) if len(changing) == 2 else curve


class StepTimer:
    """Times steps of one sequence. Seconds of a slow step are not measured twice running: they are what they were."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._last = (0, 0, 0.0)  # tokens, context, seconds

    def __call__(self, num_tokens: int, num_context_tokens: int) -> float:
        """Seconds of a step of so many new tokens after so many in the cache."""
        if self._last[:2] == (num_tokens, num_context_tokens) and self._last[2] > SLOW_STEP_SECONDS:
            return self._last[2]
        inputs = one_sequence(num_tokens, num_context_tokens)
        started = time.perf_counter()
        self._forward(inputs)
        seconds = time.perf_counter() - started
        self._last = (num_tokens, num_context_tokens, seconds)
        return seconds

    def switch(self, first: int, second: int) -> float:
        """Seconds that a step takes longer when the one before had another of these two numbers of tokens."""
        steady = [median([self(size, 0) for _ in range(_REPEATS + 1)][1:]) for size in (first, second)]
        turns = [(self(first, 0), self(second, 0)) for _ in range(_REPEATS)]
        changed = [median([pair[i] for pair in turns]) for i in (0, 1)]
        difference: float = sum(changed) - sum(steady)
        return max(0.0, difference) / 2
