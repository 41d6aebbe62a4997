"""What is tried in a step, on curves made by hand; against a search of everything that could be tried."""

from __future__ import annotations

import timeit
from collections.abc import Callable, Collection, Sequence
from itertools import accumulate, product, repeat
from operator import mul

import pytest
from hypothesis import given
from hypothesis import strategies as st

from briton.local.draft import Draft
from briton.local.lookahead.costs import CostCurve, CostPoint
from briton.local.lookahead.policy import Proposal, WindowWorth, choose

# SmolLM2-135M, int8, two cores: tokens, ms, microseconds for a token of context
SIZES = [(1, 6.2, 0.6), (8, 7.5, 1), (16, 10.7, 2), (24, 14.5, 3), (32, 17, 4), (64, 31, 8), (128, 60, 16)]
MEASURED = CostCurve(tuple(CostPoint(n, ms / 1e3, us / 1e6) for n, ms, us in SIZES), (1, 8, 16), 0.004)
CONTEXT_FREE = CostCurve(tuple(CostPoint(n, ms / 1e3, 0.0) for n, ms, _ in SIZES), (1, 8, 16), 0.004)
LINEAR = CostCurve((CostPoint(1, 0.001, 0.0), CostPoint(16, 0.016, 0.0), CostPoint(256, 0.256, 0.0)), (1,))
FLAT = CostCurve.flat()
MARGIN = 1.08

curves = st.sampled_from([MEASURED, CONTEXT_FREE, LINEAR, FLAT])
probabilities = st.floats(0.001, 0.999)
chains = st.floats(0.5, 0.995).map(lambda rate: [rate**n for n in range(1, 40)])
descending = st.lists(probabilities, max_size=4).map(lambda gains: sorted(gains, reverse=True))


def likely(rate: float, num_tokens: int = 31, context: int = 200, num_window_nodes: int = 0) -> Proposal:
    """A chain of which each token is accepted at this rate, when the one before it is."""
    return proposal(list(accumulate(repeat(rate, num_tokens), mul)), context, num_window_nodes)


def proposal(gains: Sequence[float], context: int = 0, num_window_nodes: int = 0, window_gain: float = 1.0) -> Proposal:
    """A chain with these gains, and a window of so many nodes in a row."""
    n = len(gains)
    window = None
    if num_window_nodes:
        nodes = range(n, n + num_window_nodes)
        window = Draft(tuple(range(len(nodes) + n)), (*range(-1, n - 1), -1, *nodes[:-1]), n, tuple(nodes[-2:]))
    return Proposal(Draft.chain(range(n)), gains, context, window, window_gain if window else 0.0)


def sent(drafts: Sequence[Draft | None]) -> list[int]:
    """Tokens of each."""
    return [0 if draft is None else len(draft) for draft in drafts]


def decode(curve: CostCurve, *proposals: Proposal | None, max_tokens: int = 500, shape: int = 0) -> list[int]:
    """Draft tokens chosen beside one token of each sequence."""
    return sent(choose(curve, len(proposals), len(proposals), proposals, max_tokens, shape))


def goodput(
    curve: CostCurve,
    num_tokens: int,
    num_due: int,
    proposals: Sequence[Proposal],
    counts: Sequence[int],
    shape: int,
    windows: Collection[int] = (),
) -> float:
    """Output tokens a second with so many candidates of each, the prompts' part of the step left out."""
    nodes = [p.num_window_nodes if i in windows else 0 for i, p in enumerate(proposals)]
    drafted = sum(counts) + sum(nodes)
    plain = curve.plain_size(num_tokens)
    size = max(plain, curve.padded(num_tokens + drafted)) if drafted else plain
    seconds = curve.cost(size) - max(0.0, curve.cost(plain) - curve.cost(curve.plain_size(num_due)))
    if size not in (*curve.fixed_sizes, shape):
        seconds += curve.switch_seconds / 2
    for p, count, more in zip(proposals, counts, nodes, strict=True):
        seconds += p.num_context_tokens * curve.context_cost(1 + count + more)
    gains = sum(sum(p.gains[:count]) for p, count in zip(proposals, counts, strict=True))
    return (num_due + gains + sum(proposals[i].window_gain for i in windows)) / seconds


def best_goodput(
    curve: CostCurve, num_tokens: int, num_due: int, proposals: Sequence[Proposal], max_tokens: int, shape: int
) -> float:
    """Of all that could be tried."""
    lengths = [range(len(p.gains) + 1) for p in proposals]
    return max(
        goodput(curve, num_tokens, num_due, proposals, counts, shape)
        for counts in product(*lengths)
        if sum(counts) <= max_tokens
    )


@given(
    curves, st.lists(probabilities, max_size=40) | chains, st.integers(0, 9000), st.integers(0, 40), st.integers(0, 60)
)
def test_of_one_draft_the_best_part_is_sent(
    curve: CostCurve, gains: list[float], context: int, max_tokens: int, shape: int
) -> None:
    """Gains in any order, as those of a tree."""
    proposals = [proposal(gains, context)]
    counts = decode(curve, *proposals, max_tokens=max_tokens, shape=shape)
    best, plain = (
        best_goodput(curve, 1, 1, proposals, max_tokens, shape),
        goodput(curve, 1, 1, proposals, [0], shape),
    )
    chosen = goodput(curve, 1, 1, proposals, counts, shape)
    assert counts[0] <= max_tokens
    assert chosen == pytest.approx(best if counts[0] else plain)
    assert (best > plain * MARGIN) == (counts[0] > 0) or best == pytest.approx(plain * MARGIN)


@given(
    curves,
    st.lists(
        st.lists(probabilities, max_size=4).map(lambda gains: sorted(gains, reverse=True)), min_size=1, max_size=3
    ),
    st.integers(0, 12),
    st.integers(0, 40),
    st.integers(0, 40),
)
def test_of_several_drafts_the_best_parts_are_sent(
    curve: CostCurve, gains: list[list[float]], max_tokens: int, num_prompt_tokens: int, shape: int
) -> None:
    proposals = [proposal(each) for each in gains]
    num_due = len(proposals)
    num_tokens = num_due + num_prompt_tokens
    drafts = choose(curve, num_tokens, num_due, [*proposals, None], max_tokens, shape)
    assert drafts.pop() is None
    counts = sent(drafts)
    best = best_goodput(curve, num_tokens, num_due, proposals, max_tokens, shape)
    plain = goodput(curve, num_tokens, num_due, proposals, [0] * num_due, shape)
    chosen = goodput(curve, num_tokens, num_due, proposals, counts, shape)
    assert sum(counts) <= max_tokens
    assert chosen == pytest.approx(best if any(counts) else plain)
    assert any(counts) or best <= plain * MARGIN * (1 + 1e-9)


@given(
    curves,
    st.lists(st.none() | st.tuples(probabilities, st.integers(0, 9000), st.integers(0, 30)), min_size=1, max_size=5),
    st.integers(0, 100),
    st.integers(0, 100),
)
def test_with_windows_too_it_pays_and_keeps_the_limit(
    curve: CostCurve, wanted: list[tuple[float, int, int] | None], num_prompt_tokens: int, max_tokens: int
) -> None:
    proposals = [None if each is None else likely(each[0], 8, *each[1:]) for each in wanted]
    num_due = len(proposals)
    drafts = choose(curve, num_due + num_prompt_tokens, num_due, proposals, max_tokens, 0)
    assert sum(sent(drafts)) <= max_tokens
    for each, draft in zip(proposals, drafts, strict=True):
        if each is None or draft is None:
            assert draft is None
            continue
        num_candidates = draft.num_candidates
        assert draft.cut(num_candidates) == each.draft.cut(num_candidates), "the first of its candidates"
        assert len(draft) - num_candidates in (0, each.num_window_nodes), "all of the window or none"
        assert len(draft) > 0
    proposed = [proposal([]) if each is None else each for each in proposals]
    counts = [0 if draft is None else draft.num_candidates for draft in drafts]
    windows = [i for i, draft in enumerate(drafts) if draft is not None and len(draft) > draft.num_candidates]
    plain = goodput(curve, num_due + num_prompt_tokens, num_due, proposed, [0] * num_due, 0)
    chosen = goodput(curve, num_due + num_prompt_tokens, num_due, proposed, counts, 0, windows)
    assert chosen >= plain * (1 - 1e-9)
    assert chosen > plain * 1.07 or not any(drafts)


def test_where_a_step_costs_the_same_all_is_sent() -> None:
    assert decode(FLAT, likely(0.5), likely(0.9)) == [31, 31]
    assert decode(FLAT, likely(0.02, 5), likely(0.9), max_tokens=33) == [2, 31]
    assert decode(FLAT, likely(0.5), max_tokens=3) == [3]
    assert decode(FLAT, likely(0.5), max_tokens=0) == [0]


def test_where_tokens_cost_their_share_nothing_is_sent() -> None:
    assert decode(LINEAR, likely(0.95), likely(0.99)) == [0, 0]


def test_with_16_sequences_only_likely_tokens_are_sent() -> None:
    counts = decode(CONTEXT_FREE, *(likely(0.98, 8) if i % 4 == 0 else likely(0.4, 8) for i in range(16)))
    assert counts[::4] == [8, 8, 8, 8]
    assert sum(counts) == 32


@pytest.mark.parametrize(("rate", "count"), [(0.05, 0), (0.6, 7), (0.85, 7), (0.9, 15), (0.99, 31)])
def test_on_the_measured_curve(rate: float, count: int) -> None:
    assert decode(CONTEXT_FREE, likely(rate)) == [count]


def test_a_long_context_makes_each_token_dearer() -> None:
    counts = [decode(MEASURED, likely(0.6, context=context))[0] for context in (0, 2000, 8000, 30_000)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 7
    assert 0 < counts[-1] < 7, "what it reads of the context is not free where a size is filled up"


def test_later_tokens_read_the_context_more_dearly_than_the_first() -> None:
    """From the ninth token on twice as dearly, on this curve."""
    cheap = CostCurve(tuple(CostPoint(n, 0.1, us / 1e6) for n, _, us in SIZES))
    counts = [decode(cheap, proposal([gain] * 30, context=100_000)) for gain in (0.1, 0.3)]
    assert counts == [[7], [30]]


def test_a_window_reads_the_context_too() -> None:
    wishes = [proposal([], context, num_window_nodes=7, window_gain=0.5) for context in (0, 30_000)]
    assert [decode(MEASURED, wish) for wish in wishes] == [[7], [0]]


def test_a_step_that_is_padded_anyway_is_filled_up() -> None:
    """Five sequences are computed as eight tokens, with drafts or without."""
    assert decode(CONTEXT_FREE, *[likely(0.2, 6)] * 4, likely(0.25, 6)) == [1, 1, 0, 0, 1]
    short = CostCurve(
        (CostPoint(1, 6.2, 0.0), CostPoint(8, 12.0, 0.0)), (1, 8, 16)
    )  # of a machine too slow to be asked for more
    assert decode(short, *[proposal([0.3])] * 12) == [1, 1, 1, 1] + [0] * 8, "twelve are computed as sixteen"


def test_a_change_of_size_has_its_price() -> None:
    wish = likely(0.978)
    assert decode(CONTEXT_FREE, wish, shape=8) == [15], "16 has a graph of its own"
    assert decode(CONTEXT_FREE, wish, shape=32) == [31], "32 is what the graph of any size is prepared for"


def test_without_drafts_a_change_of_size_is_no_cheaper() -> None:
    """17 sequences: their own step would be a change as well."""
    wish = [likely(0.5, 1, 0)] * 17
    assert sum(decode(CONTEXT_FREE, *wish, shape=0)) == 0
    assert sum(decode(CONTEXT_FREE, *wish, shape=24)) == 7


@pytest.mark.parametrize("num_prompt_tokens", [0, 100, 2000])
def test_beside_a_prompt_a_token_must_be_as_likely_as_ever(num_prompt_tokens: int) -> None:
    """Over the seconds of the whole step, a token accepted once in a hundred times would pay: and cost what computes
    a sure one in the next."""
    chunk = num_prompt_tokens + 1
    assert sent(choose(CONTEXT_FREE, chunk, 1, [proposal([0.04] * 31)], 4000, 0)) == [0]
    assert sent(choose(CONTEXT_FREE, chunk, 1, [likely(0.97)], 4000, 0))[0] in range(14, 32)


def test_nothing_where_nobody_is_sampled() -> None:
    assert sent(choose(FLAT, 64, 0, [None, None], 64, 0)) == [0, 0]


def test_a_later_likelier_branch_takes_those_before_it_along() -> None:
    """Of a tree, nodes come in the order they have."""
    assert decode(CONTEXT_FREE, proposal([0.4, 0.001, 0.0005, 0.3, 0.2]), max_tokens=7) == [5]


def test_a_window_that_is_worth_its_tokens_runs_beside_the_likely_candidates() -> None:
    wish = proposal([0.9, 0.8, 0.01, 0.01], num_window_nodes=5, window_gain=0.6)
    (draft,) = choose(CONTEXT_FREE, 1, 1, [wish], 7, 0)
    assert draft is not None
    assert (len(draft), draft.num_candidates) == (7, 2)
    assert draft.parents == (-1, 0, -1, 2, 3, 4, 5)
    assert draft.window_rows == (5, 6)


def test_a_window_that_is_not_worth_its_tokens_is_left_out() -> None:
    wish = proposal([0.9, 0.8, 0.7], num_window_nodes=40, window_gain=0.8)
    (draft,) = choose(CONTEXT_FREE, 1, 1, [wish], 500, 0)
    assert draft == wish.draft
    assert decode(FLAT, wish, max_tokens=42) == [42], "two candidates, the window"
    assert decode(FLAT, wish, max_tokens=39) == [3], "no room for it"
    assert decode(FLAT, proposal([], num_window_nodes=40), max_tokens=40) == [40]


def test_one_window_or_all() -> None:
    wishes = [proposal([], num_window_nodes=10, window_gain=0.9) for _ in range(4)]
    assert decode(FLAT, *wishes) == [10, 10, 10, 10]
    assert decode(FLAT, *wishes, max_tokens=25) == [10, 0, 0, 0]
    assert decode(LINEAR, *wishes) == [0, 0, 0, 0]


@pytest.mark.timing
def test_it_costs_microseconds() -> None:
    def microseconds(call: Callable[[], object]) -> float:
        return min(timeit.repeat(call, number=20, repeat=30)) / 20 * 1e6

    one, many = [likely(0.9, 8)], [likely(0.5 + 0.03 * i, 8) for i in range(16)]
    assert microseconds(lambda: choose(MEASURED, 1, 1, one, 500, 0)) < 50  # 8 on the machine of benchmarks/LOG.md
    assert microseconds(lambda: choose(MEASURED, 16, 16, many, 500, 0)) < 300  # 55


def test_a_window_is_tried_given_up_and_tried_again() -> None:
    worth = WindowWorth()
    hope = worth.worth
    assert hope > 1
    for _ in range(100):
        worth.observe(0)
    assert worth.worth < hope / 4
    for _ in range(1000):
        worth.observe_idle()
    assert worth.worth < hope / 3, "not yet"
    for _ in range(20_000):
        worth.observe_idle()
    assert worth.worth > hope * 3 / 4


@pytest.mark.parametrize("gained", [0, 1, 5])
def test_the_worth_of_a_window_is_learned(gained: int) -> None:
    worth = WindowWorth()
    for _ in range(400):
        worth.observe(gained)
    assert worth.worth == pytest.approx(gained, abs=0.6)


@given(st.lists(st.none() | st.integers(0, 8), max_size=80))
def test_the_worth_of_a_window_stays_between_hope_and_what_was_seen(steps: list[int | None]) -> None:
    worth = WindowWorth()
    hope = worth.worth
    for gained in steps:
        if gained is None:
            worth.observe_idle()
        else:
            worth.observe(gained)
    seen = [gained for gained in steps if gained is not None]
    assert min([hope, *seen]) - 1e-9 <= worth.worth <= max([hope, *seen]) + 1e-9
