"""A draft as a tree: who follows whom, who sees whom, what is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from briton.local.draft import ROOT, Draft

branches = st.lists(st.lists(st.integers(0, 2), max_size=5), max_size=5)
WINDOWED = Draft((5, 6, 7, 8, 9, 10), (ROOT, 0, ROOT, ROOT, 3, 3), 3, (4, 5))


def path(draft: Draft, node: int) -> list[int]:
    """Nodes from the root to this one."""
    return [] if node == ROOT else [*path(draft, draft.parents[node]), node]


def texts(draft: Draft) -> list[list[int]]:
    """What each node reads, from the root."""
    return [[draft.token_ids[i] for i in path(draft, node)] for node in range(len(draft))]


@given(branches)
def test_a_trie_has_each_beginning_once(branches: list[list[int]]) -> None:
    draft = Draft.trie(branches)
    beginnings = {tuple(branch[:size]) for branch in branches for size in range(1, len(branch) + 1)}
    assert sorted(texts(draft)) == sorted(map(list, beginnings))
    assert draft.num_candidates == len(draft) == len(beginnings)
    assert all(parent < node for node, parent in enumerate(draft.parents))
    assert draft.rows == tuple(range(len(draft)))


@given(branches)
def test_the_first_branch_lies_where_its_tokens_would_lie_undrafted(branches: list[list[int]]) -> None:
    draft = Draft.trie(branches)
    first = branches[0] if branches else []
    assert list(draft.token_ids[: len(first)]) == first
    assert list(draft.parents[: len(first)]) == list(range(-1, len(first) - 1))


@given(branches, st.lists(st.integers(0, 2), max_size=6))
def test_walking_finds_a_branch_as_far_as_one_agrees(branches: list[list[int]], output: list[int]) -> None:
    draft = Draft.trie(branches)
    node, found = ROOT, 0
    for token_id in output:
        child = draft.child(node, token_id)
        if child is None:
            break
        node, found = child, found + 1
    agreeing = [size for size in range(1, len(output) + 1) if any(b[:size] == output[:size] for b in branches)]
    assert found == max(agreeing, default=0)


@given(branches, st.integers(1, 3))
def test_a_node_sees_the_sequence_its_ancestors_and_itself(branches: list[list[int]], num_own: int) -> None:
    draft = Draft.trie(branches)
    mask = draft.mask(num_own)
    assert mask.shape == (num_own + len(draft),) * 2
    np.testing.assert_array_equal(mask[:num_own], np.tri(num_own, num_own + len(draft)))
    for node in range(len(draft)):
        seen = np.flatnonzero(mask[num_own + node]).tolist()
        assert seen == [*range(num_own), *(num_own + i for i in path(draft, node))]
        assert draft.depths()[node] == len(path(draft, node))


def test_a_chain_needs_no_mask() -> None:
    chain = Draft.chain([4, 5, 6])
    assert chain == Draft.trie([[4, 5, 6], [4, 5]])
    assert chain.is_chain
    np.testing.assert_array_equal(chain.mask(2), np.tri(5))
    assert not Draft.trie([[4], [5]]).is_chain
    assert Draft.chain([]).is_chain


def test_the_windows_nodes_are_never_accepted() -> None:
    assert WINDOWED.child(ROOT, 7) == 2
    assert WINDOWED.child(ROOT, 8) is None
    assert WINDOWED.rows == (0, 1, 2, 4, 5)


@pytest.mark.parametrize("num_candidates", [0, 1, 2, 3, 9])
def test_candidates_can_be_cut_with_the_window_or_without(num_candidates: int) -> None:
    size = min(num_candidates, 3)
    cut, kept = WINDOWED.cut(num_candidates), WINDOWED.keep(num_candidates)
    assert cut == Draft(WINDOWED.token_ids[:size], WINDOWED.parents[:size], size)
    assert texts(kept) == texts(WINDOWED)[:size] + texts(WINDOWED)[3:]
    assert kept.num_candidates == size
    assert [kept.token_ids[row] for row in kept.window_rows] == [9, 10]
