"""Steps filled up to a size the model is prepared for, with tokens that nobody wants.

A change of a step's number of tokens costs the plugin 3 to 5 ms, and a graph compiled for one number is a tenth faster
than one for any (benchmarks/LOG.md, 2026-11-24): a few sizes are worth more than a few tokens less.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from briton.local.plan import StepInputs
from briton.local.settings import BLOCK_SIZE

# Sizes that a graph of its own is compiled for, and the fewest tokens of a plain decode step that are computed there:
# 12 tokens in a graph of 16 take as long as in the graph of any size, 9 an eighth longer, 4 in a graph of 8 a twelfth;
# 2 to 4 in a graph of 4 a twentieth less.
FIXED_SIZES = {1: 1, 4: 2, 8: 5, 16: 12}
DRAFT_STEP_MULTIPLE = 8  # tokens, of a step with drafts that no fixed size holds
MAX_PADDED_SIZE = 128  # tokens: beyond, a change of size is small beside the step


def padded_size(inputs: StepInputs, fixed_sizes: Collection[int]) -> int:
    """Tokens that a step is to be computed as, of these `fixed_sizes` where it suits.

    A plain decode step keeps its size for long, and is only padded where that is no slower; the sizes of other steps
    vary.
    """
    num_tokens, num_sequences = len(inputs.token_ids), len(inputs.past_lens)
    for size in sorted(fixed_sizes):
        if num_tokens <= size:
            return size if num_tokens > num_sequences or num_tokens >= FIXED_SIZES[size] else num_tokens
    return draft_step_size(num_tokens, fixed_sizes) if has_drafts(inputs) else num_tokens


def draft_step_size(num_tokens: int, fixed_sizes: Collection[int]) -> int:
    """Tokens that a step with drafts is computed as."""
    for size in sorted(fixed_sizes):
        if num_tokens <= size:
            return size
    if num_tokens <= MAX_PADDED_SIZE:
        return -(-num_tokens // DRAFT_STEP_MULTIPLE) * DRAFT_STEP_MULTIPLE
    return num_tokens


def has_drafts(inputs: StepInputs) -> bool:
    """Whether logits of more than one row are wanted of some sequence."""
    sequences = np.searchsorted(inputs.subsequence_begins, inputs.sampled_rows, side="right")
    return bool((np.diff(sequences) == 0).any())


def pad_tokens(inputs: StepInputs, size: int, scratch_block: int) -> StepInputs:
    """The same step as `size` tokens: one more sequence, of what is missing, in a block that no other has.

    Raises ValueError when the step has that many tokens already, or lacks more than a block holds.
    """
    num_tokens = len(inputs.token_ids)
    missing = size - num_tokens
    if not 0 < missing <= BLOCK_SIZE:
        raise ValueError(f"{num_tokens} tokens cannot be padded to {size}: 1 to {BLOCK_SIZE} may be missing")
    return inputs._replace(
        token_ids=np.append(inputs.token_ids, np.zeros(missing, np.int64)),
        position_ids=np.append(inputs.position_ids, np.zeros(missing, np.int64)),
        past_lens=np.append(inputs.past_lens, np.int32(0)),
        subsequence_begins=np.append(inputs.subsequence_begins, np.int32(size)),
        block_indices=np.append(inputs.block_indices, np.int32(scratch_block)),
        block_indices_begins=np.append(inputs.block_indices_begins, np.int32(len(inputs.block_indices) + 1)),
        max_context_len=max(inputs.max_context_len, missing),
        qq_bias_begins=np.append(inputs.qq_bias_begins, inputs.qq_bias_begins[-1]),
    )
