"""The lookahead window against a simulation written from the paper, and what it finds in models of known rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from briton.config.lookahead import LookaheadConfig
from briton.local.draft import ROOT, Draft
from briton.local.lookahead.pool import NgramPool
from briton.local.lookahead.window import LookaheadWindow

Model = Callable[[Sequence[int]], int]
Guesses = dict[tuple[int, int], int]  # by level, and place in the text
PROMPT = [3, 14, 15, 92, 65, 35]
SIZES = [(5, 5, 5), (7, 5, 7), (8, 3, 3), (3, 8, 3), (4, 2, 4), (1, 2, 1), (1, 3, 2), (1, 8, 1), (2, 4, 0)]


def ring(text: Sequence[int]) -> int:
    """The next token of a text, from the last one: a cycle of 96."""
    return 5 * text[-1] % 97


def pairs(text: Sequence[int]) -> int:
    """From the last two: a cycle of 168, in which each of 13 tokens is followed by each."""
    return (text[-1] + 11 * text[-2]) % 13


def everything(text: Sequence[int]) -> int:
    """From all tokens and their places."""
    return sum(place * (token + 1) for place, token in enumerate(text, 1)) % 89


def path(draft: Draft, node: int) -> list[int]:
    """Tokens from the root to this node."""
    return [] if node == ROOT else [*path(draft, draft.parents[node]), draft.token_ids[node]]


def outputs_of(model: Model, text: list[int], draft: Draft) -> list[int]:
    """What the model says after each window row."""
    return [model(text + path(draft, row)) for row in draft.window_rows]


class Paper:
    """The window of Fu et al. 2024, as a table of guesses. `end` is the place of the text's last token; column i of
    level 0 is at end + lead + i, of level j another j behind that. What lies between the text and column 0 is level
    0's too."""

    def __init__(self, config: LookaheadConfig, text: list[int]) -> None:
        self.width, self.num_levels, self.text = config.window_size, config.ngram_size - 1, list(text)
        self.guesses: Guesses = {}
        self.num_filled = min(1, self.num_levels)

    @property
    def lead(self) -> int:
        return self.num_levels - self.num_filled

    def places(self) -> set[tuple[int, int]]:
        """Where guesses have to be."""
        end, width = len(self.text) - 1, self.width
        level_0 = {(0, end + 1 + i) for i in range(self.lead + width - 1)}
        return level_0 | {(j, end + self.lead + j + i) for j in range(1, self.num_filled) for i in range(width)}

    def column(self, i: int) -> list[int]:
        """What the top of column i sees, and itself."""
        head = len(self.text) - 1 + self.lead + i
        seen = [self.guesses[0, place] for place in range(len(self.text), head + 1)]
        return seen + [self.guesses[j, head + j] for j in range(1, self.num_filled)]

    def iterate(self, model: Model) -> list[tuple[int, ...]]:
        """A step, seen before its tokens are known: all levels move, their n-grams are returned."""
        end, ngrams = len(self.text) - 1, []
        answers = [model(self.text + self.column(i)) for i in range(self.width)]
        if self.lead == 0:
            ngrams = [(*(self.text[end:] + self.column(i))[i:], answers[i]) for i in range(self.width)]
            self.guesses = {(j - 1, place): token for (j, place), token in self.guesses.items() if j > 0}
        else:
            self.num_filled += 1
        self.guesses |= {(self.num_filled - 1, end + self.num_levels + i): a for i, a in enumerate(answers)}
        return ngrams

    def accept(self, token_ids: Sequence[int], num_iterated: int) -> None:
        """The text grows; by more than what was iterated, and the guesses are carried along."""
        self.text += token_ids
        behind = len(token_ids) - num_iterated
        guesses = {(j, place + behind): token for (j, place), token in self.guesses.items()}
        self.guesses = {key: token for key, token in guesses.items() if key in self.places()}

    def read(self, draft: Draft) -> Guesses:
        """What a draft has at the same places, from the paths of its window rows."""
        found: Guesses = {}
        first_column = 1 if self.num_levels == 1 else 0
        for i, row in enumerate(draft.window_rows, first_column):
            tokens, end = path(draft, row), len(self.text) - 1
            assert len(tokens) == self.lead + i + self.num_filled - 1
            for depth, token_id in enumerate(tokens, 1):
                key = (max(0, depth - self.lead - i), end + depth)
                assert found.setdefault(key, token_id) == token_id
        return found


class RecordingPool(NgramPool):
    """Keeps what it is given."""

    def __init__(self, config: LookaheadConfig) -> None:
        super().__init__(config)
        self.added: list[tuple[int, ...]] = []

    def add(self, ngram: Sequence[int]) -> None:
        self.added.append(tuple(ngram))
        super().add(ngram)


def continuation(model: Model, text: Sequence[int], num_tokens: int) -> list[int]:
    """What the model goes on with."""
    whole = list(text)
    for _ in range(num_tokens):
        whole.append(model(whole))
    return whole[len(text) :]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("accepting", [(1,), (1, 3, 1, 1, 2), (2, 9, 1)])
def test_it_is_the_papers_window(sizes: tuple[int, int, int], accepting: tuple[int, ...]) -> None:
    config = LookaheadConfig(*sizes)
    pool = RecordingPool(config)
    window, paper = LookaheadWindow(config, PROMPT, pool), Paper(config, PROMPT)
    for step in range(40):
        draft = window.attach([])
        guesses = paper.read(draft)
        assert guesses.keys() == paper.places()
        assert len(guesses) == len(draft) == window.num_nodes
        if step == 0:
            assert set(guesses.values()) <= set(PROMPT)
            paper.guesses = guesses
        assert guesses == paper.guesses

        outputs = outputs_of(everything, paper.text, draft)
        accepted = continuation(everything, paper.text, accepting[step % len(accepting)])
        pool.added.clear()
        if step % 7 == 6 or not outputs:  # a step without the window
            window.update([], accepted)
            assert pool.added == []
            paper.accept(accepted, 0)
        else:
            ngrams = paper.iterate(everything)
            window.update(outputs, accepted)
            assert pool.added == ngrams
            assert len(ngrams) == (config.window_size if step >= config.ngram_size - 2 else 0)
            paper.accept(accepted, 1)


@pytest.mark.parametrize("sizes", SIZES)
def test_a_full_step_has_the_draft_tokens_that_tensorrt_llm_counts(sizes: tuple[int, int, int]) -> None:
    config = LookaheadConfig(*sizes)
    window = LookaheadWindow(config, PROMPT, NgramPool(config))
    branches = [[100 + i] * (config.ngram_size - 1) for i in range(config.verification_set_size)]
    text = list(PROMPT)
    for step in range(2 * config.ngram_size):
        draft = window.attach(branches)
        assert len(draft) <= config.draft_tokens
        if step >= config.ngram_size - 2:
            assert len(draft) == config.draft_tokens
        accepted = continuation(everything, text, 1)
        window.update(outputs_of(everything, text, draft), accepted)
        text += accepted


@pytest.mark.parametrize("sizes", SIZES)
def test_branches_and_window_do_not_see_each_other(sizes: tuple[int, int, int]) -> None:
    config, num_own = LookaheadConfig(*sizes), 2
    window = LookaheadWindow(config, PROMPT, NgramPool(config))
    branches = [[1, 2, 3], [1, 2, 4], [5]]
    for step in range(config.ngram_size):
        draft, alone = window.attach(branches), window.attach([])
        candidates = Draft.trie(branches)
        size = len(candidates)
        assert draft.num_candidates == size
        assert draft.keep(size) == draft
        assert draft.keep(0) == alone
        assert draft.cut(size) == candidates
        mask = draft.mask(num_own)
        own, beside = slice(num_own), slice(num_own + size, None)
        np.testing.assert_array_equal(mask[num_own : num_own + size, num_own : num_own + size], candidates.mask(0))
        np.testing.assert_array_equal(mask[beside, beside], alone.mask(0))
        assert not mask[num_own : num_own + size, beside].any()
        assert not mask[beside, num_own : num_own + size].any()
        assert mask[num_own:, own].all()
        assert max(draft.depths(), default=0) <= max(3, config.window_size + config.ngram_size - 3)
        window.update(list(range(len(draft.window_rows))), [step])


def test_n_grams_of_one_token_have_no_window() -> None:
    config = LookaheadConfig(8, 1, 1)
    window = LookaheadWindow(config, PROMPT, NgramPool(config))
    window.update([], [1, 2])
    assert window.num_nodes == config.draft_tokens == 0
    assert window.attach([[1, 2], [1, 3]]) == Draft.trie([[1, 2], [1, 3]])


def decode(model: Model, config: LookaheadConfig, num_tokens: int, *, with_window: bool) -> tuple[list[int], int]:
    """Greedy output, and the steps it took."""
    text, num_steps = list(PROMPT), 0
    pool = NgramPool(config)
    pool.seed(text)
    window = LookaheadWindow(config, text, pool)
    while len(text) < len(PROMPT) + num_tokens:
        branches = pool.following(text[-1], config.verification_set_size)
        draft = window.attach(branches) if with_window else Draft.trie(branches)
        accepted, node = [model(text)], draft.child(ROOT, model(text))
        while node is not None:
            accepted.append(model(text + path(draft, node)))
            node = draft.child(node, accepted[-1])
        outputs = outputs_of(model, text, draft)
        text += accepted
        pool.seed(accepted)
        window.update(outputs, accepted)
        num_steps += 1
    return text[len(PROMPT) :][:num_tokens], num_steps


@pytest.mark.parametrize(
    ("model", "sizes", "most_steps"), [(ring, (5, 5, 5), 60), (ring, (4, 3, 4), 60), (pairs, (7, 5, 7), 85)]
)
def test_it_finds_text_that_was_never_seen(model: Model, sizes: tuple[int, int, int], most_steps: int) -> None:
    """The output is one cycle, in which nothing comes twice: what is accepted early was found by the window."""
    config, num_tokens = LookaheadConfig(*sizes), 90
    expected = continuation(model, PROMPT, num_tokens)
    assert decode(model, config, num_tokens, with_window=False) == (expected, num_tokens)
    output, num_steps = decode(model, config, num_tokens, with_window=True)
    assert output == expected
    assert num_steps < most_steps


@pytest.mark.parametrize("sizes", [(5, 5, 5), (3, 3, 3), (2, 8, 1)])
def test_its_n_grams_go_on_as_the_model_does(sizes: tuple[int, int, int]) -> None:
    """But for column 0, whose first guess gives way to the text's own token in each step."""
    config = LookaheadConfig(*sizes)
    pool = RecordingPool(config)
    window, text = LookaheadWindow(config, PROMPT, pool), list(PROMPT)
    for _ in range(60):
        accepted = continuation(pairs, text, 1)
        window.update(outputs_of(pairs, text, window.attach([])), accepted)
        text += accepted
    assert len(pool.added) == config.window_size * (60 - config.ngram_size + 2)
    for i, ngram in enumerate(pool.added):
        if i % config.window_size == 0:
            continue
        assert list(ngram[2:]) == continuation(pairs, ngram[:2], len(ngram) - 2)


def test_the_first_guesses_are_always_the_same() -> None:
    config = LookaheadConfig(7, 5, 3)
    drafts = [LookaheadWindow(config, list(range(500)), NgramPool(config)).attach([]) for _ in range(2)]
    assert drafts[0] == drafts[1]
    assert len(set(drafts[0].token_ids)) > 1


@pytest.mark.parametrize(("sizes", "num_outputs"), [((4, 3, 1), 3), ((4, 3, 1), 5), ((4, 2, 1), 4)])
def test_outputs_that_are_not_the_windows_are_refused(sizes: tuple[int, int, int], num_outputs: int) -> None:
    config = LookaheadConfig(*sizes)
    window = LookaheadWindow(config, PROMPT, NgramPool(config))
    with pytest.raises(ValueError, match=r"answers to a window of 4 columns, 1 levels"):
        window.update([0] * num_outputs, [1])
    with pytest.raises(ValueError, match="at least one token"):
        window.update([], [])
