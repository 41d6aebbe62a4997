"""What one engine step computes: the scheduler's decision, and the same as flat arrays for the model."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from briton.local.draft import Draft
from briton.local.sequence import SequenceState


class ScheduledSequence(NamedTuple):
    """One sequence's share of a step: its next `num_new_tokens` uncomputed tokens, and a draft of what may follow."""

    sequence: SequenceState
    num_new_tokens: int
    draft: Draft | None = None  # only where this samples

    @property
    def samples(self) -> bool:
        """Whether this catches up with the sequence's tokens, so that a next one is sampled."""
        return self.sequence.num_computed_tokens + self.num_new_tokens == self.sequence.num_tokens

    @property
    def num_rows(self) -> int:
        """Rows of logits that it gets, where it samples: its last token's, then the draft's."""
        return 1 if self.draft is None else 1 + len(self.draft.rows)


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
    qq_bias: NDArray[np.uint8]  # query by query masks of the sequences that have one, flattened: 1 = may attend
    qq_bias_begins: NDArray[np.int32]  # [sequences + 1], into qq_bias; an empty range is plain causal attention


Forward = Callable[[StepInputs], NDArray[np.float32]]  # a model: logits [rows, vocab], valid until the next call


def step_inputs(plan: StepPlan) -> StepInputs:
    """Lay a plan out for the model. A sequence's draft follows its own new tokens."""
    past = [entry.sequence.num_computed_tokens for entry in plan]
    counts = [entry.num_new_tokens + len(entry.draft or ()) for entry in plan]
    tables = [entry.sequence.block_table for entry in plan]
    token_ids: list[int] = []
    position_ids: list[int] = []
    sampled_rows: list[int] = []
    masks: list[NDArray[np.uint8]] = []
    mask_sizes = []
    for (sequence, num_new, draft), start in zip(plan, past, strict=True):
        end = start + num_new
        token_ids += sequence.token_ids[start:end]
        position_ids += range(start, end)
        mask_sizes.append(0)
        if end == sequence.num_tokens:
            sampled_rows.append(len(token_ids) - 1)
        if draft is None:
            continue
        sampled_rows += [len(token_ids) + node for node in draft.rows]
        token_ids += draft.token_ids
        if draft.is_chain:
            position_ids += range(end, end + len(draft))
        else:
            position_ids += [end - 1 + depth for depth in draft.depths()]
            masks.append(draft.mask(num_new).ravel())
            mask_sizes[-1] = masks[-1].size
    return StepInputs(
        np.array(token_ids, np.int64),
        np.array(position_ids, np.int64),
        np.array(past, np.int32),
        _prefix_sums(counts),
        np.array(list(chain.from_iterable(tables)), np.int32),
        _prefix_sums([len(t) for t in tables]),
        max(p + n for p, n in zip(past, counts, strict=True)),
        np.array(sampled_rows, np.int64),
        np.concatenate(masks) if masks else np.zeros(0, np.uint8),
        _prefix_sums(mask_sizes),
    )


def _prefix_sums(counts: list[int]) -> NDArray[np.int32]:
    sums = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=sums[1:])
    return sums
