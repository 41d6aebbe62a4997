"""What one engine step computes: the scheduler's decision, and the same as flat arrays for the model."""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from briton.local.sequence import Sequence


class ScheduledSequence(NamedTuple):
    """One sequence's share of a step: its next `num_new_tokens` uncomputed tokens."""

    sequence: Sequence
    num_new_tokens: int

    @property
    def samples(self) -> bool:
        """Whether this catches up with the sequence's tokens, so that a next one is sampled."""
        return self.sequence.num_computed_tokens + self.num_new_tokens == self.sequence.num_tokens


StepPlan = list[ScheduledSequence]


class StepInputs(NamedTuple):
    """A plan as arrays, sequences concatenated in plan order. Computed once on rank 0."""

    token_ids: NDArray[np.int64]  # [tokens]
    position_ids: NDArray[np.int64]  # [tokens]
    past_lens: NDArray[np.int32]  # [sequences], tokens already in the cache
    subsequence_begins: NDArray[np.int32]  # [sequences + 1]
    block_indices: NDArray[np.int32]  # [sum of table lengths]
    block_indices_begins: NDArray[np.int32]  # [sequences + 1]
    max_context_len: int  # longest past + new
    sampled_rows: NDArray[np.int64]  # rows whose logits are wanted, in plan order


def step_inputs(plan: StepPlan) -> StepInputs:
    """Lay a plan out for the model."""
    past = [s.num_computed_tokens for s, _ in plan]
    counts = [n for _, n in plan]
    tables = [s.block_table for s, _ in plan]
    begins = _prefix_sums(counts)
    if max(counts) == 1:
        token_ids = np.array([s.token_ids[p] for (s, _), p in zip(plan, past, strict=True)], np.int64)
        position_ids = np.array(past, np.int64)
    else:
        token_ids = np.array(
            list(chain.from_iterable(s.token_ids[p : p + n] for (s, n), p in zip(plan, past, strict=True))), np.int64
        )
        position_ids = np.concatenate([np.arange(p, p + n, dtype=np.int64) for p, n in zip(past, counts, strict=True)])
    sampled = [i for i, entry in enumerate(plan) if entry.samples]
    return StepInputs(
        token_ids,
        position_ids,
        np.array(past, np.int32),
        begins,
        np.array(list(chain.from_iterable(tables)), np.int32),
        _prefix_sums([len(t) for t in tables]),
        max(p + n for p, n in zip(past, counts, strict=True)),
        begins[1:][sampled].astype(np.int64) - 1,
    )


def _prefix_sums(counts: list[int]) -> NDArray[np.int32]:
    sums = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=sums[1:])
    return sums
