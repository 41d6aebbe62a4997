"""Which size a step is filled up to, and with what."""

from __future__ import annotations

import numpy as np
import pytest

from briton.local.padding import FIXED_SIZES, has_drafts, pad_tokens, padded_size
from briton.local.plan import StepInputs
from briton.local.settings import BLOCK_SIZE


def step(counts: list[int], num_rows: list[int]) -> StepInputs:
    """Sequences with so many tokens in this step, of whose last `num_rows` logits are wanted; 40 computed before."""
    begins = np.cumsum([0, *counts])
    rows = [begin + n - m + i for begin, n, m in zip(begins, counts, num_rows, strict=False) for i in range(m)]
    return StepInputs(
        token_ids=np.arange(begins[-1], dtype=np.int64),
        position_ids=np.concatenate([np.arange(40, 40 + n) for n in counts]),
        past_lens=np.full(len(counts), 40, np.int32),
        subsequence_begins=begins.astype(np.int32),
        block_indices=np.arange(2 * len(counts), dtype=np.int32),
        block_indices_begins=2 * np.arange(len(counts) + 1, dtype=np.int32),
        max_context_len=40 + max(counts),
        sampled_rows=np.array(rows, np.int64),
        qq_bias=np.ones(4, np.uint8),
        qq_bias_begins=np.array([0, *[4] * len(counts)], np.int32),
    )


def sizes(*steps: tuple[list[int], list[int]], fixed: tuple[int, ...] = (1, 8, 16)) -> list[int]:
    """Of these steps."""
    return [padded_size(step(*each), fixed) for each in steps]


def test_plain_decode_is_padded_where_that_is_no_slower() -> None:
    plain = [([1] * n, [1] * n) for n in (1, 2, 4, 5, 8, 9, 11, 12, 16, 17, 100)]
    assert sizes(*plain) == [1, 2, 4, 8, 8, 9, 11, 16, 16, 17, 100]
    assert sizes(*plain, fixed=(8,)) == [1, 2, 4, 8, 8, 9, 11, 12, 16, 17, 100]
    assert sizes(*plain, fixed=()) == [1, 2, 4, 5, 8, 9, 11, 12, 16, 17, 100]


def test_parts_of_prompts_are_padded_to_fixed_sizes_alone() -> None:
    prompts = [([n], [0]) for n in (1, 2, 9, 16, 17, 100)]
    assert sizes(*prompts) == [1, 8, 16, 16, 17, 100]
    assert sizes(*prompts, fixed=()) == [1, 2, 9, 16, 17, 100]


def test_steps_with_drafts_are_padded_to_multiples_of_8() -> None:
    drafts = [([1, n], [1, n]) for n in (2, 8, 15, 16, 31, 120, 127, 128, 130)]
    assert sizes(*drafts) == [8, 16, 16, 24, 32, 128, 128, 129, 131]
    assert sizes(*drafts, fixed=()) == [8, 16, 16, 24, 32, 128, 128, 129, 131]


def test_drafts_are_told_by_their_rows() -> None:
    """Four rows of four sequences are not always one each."""
    assert has_drafts(step([7, 1, 2], [0, 1, 2]))
    assert has_drafts(step([9, 9, 9, 9], [0, 3, 0, 1]))
    assert not has_drafts(step([7, 1, 2], [0, 1, 1]))
    assert not has_drafts(step([7, 1, 2], [1, 1, 1]))
    assert not has_drafts(step([7], [0]))


def test_padding_is_one_more_sequence() -> None:
    before = step([3, 2], [1, 2])
    after = pad_tokens(before, 8, scratch_block=99)
    assert after.token_ids.tolist() == [*before.token_ids, 0, 0, 0]
    assert after.position_ids.tolist() == [*before.position_ids, 0, 0, 0]
    assert after.past_lens.tolist() == [40, 40, 0]
    assert after.subsequence_begins.tolist() == [0, 3, 5, 8]
    assert after.block_indices.tolist() == [0, 1, 2, 3, 99]
    assert after.block_indices_begins.tolist() == [0, 2, 4, 5]
    assert after.qq_bias_begins.tolist() == [0, 4, 4, 4]
    assert after.max_context_len == before.max_context_len
    assert after.sampled_rows is before.sampled_rows
    assert [array.dtype for array in after[:6]] == [array.dtype for array in before[:6]]
    assert pad_tokens(before._replace(max_context_len=2), 8, 99).max_context_len == 3


@pytest.mark.parametrize("size", [4, 5, 5 + BLOCK_SIZE + 1])
def test_what_no_block_holds_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"5 tokens cannot be padded to {size}"):
        pad_tokens(step([5], [1]), size, 0)


def test_a_fixed_size_never_lacks_more_than_a_block() -> None:
    assert max(FIXED_SIZES) <= BLOCK_SIZE
