"""The sampler: each parameter does what it is named for, and distributions are right."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from briton.engine.types import GenerationRequest, SamplingParams
from briton.local.penalties import PenaltyState
from briton.local.sampler import Sampled, Sampler, StepLogits, draw, token_logprob
from briton.local.sequence import RequestState, SequenceState

VOCAB_SIZE = 300
STOP = 7


def sequence(
    prompt: tuple[int, ...] = (1, 2), output: tuple[int, ...] = (), guide: Any = None, **sampling: Any
) -> SequenceState:
    params = SamplingParams(**({"max_tokens": 100, "temperature": 0.0} | sampling))
    made = RequestState.create(GenerationRequest(0, prompt, params, guide)).sequences[0]
    made.token_ids += output
    return made


def logits(**values: float) -> NDArray[np.float32]:
    """Zeros, but for t5=1.5 meaning token 5."""
    row = np.zeros((1, VOCAB_SIZE), np.float32)
    for name, value in values.items():
        row[0, int(name[1:])] = value
    return row


def sample_each(rows: NDArray[np.float32], *sequences: SequenceState) -> list[Sampled | Exception]:
    """Row i for sequence i; what a sequence's sampling raises stands in its place."""
    sampler, logits = Sampler(VOCAB_SIZE, [STOP]), StepLogits(rows)
    results: list[Sampled | Exception] = []
    for i, each in enumerate(sequences):
        try:
            results.append(sampler.sample(logits, i, each))
        except Exception as error:
            results.append(error)
    return results


def sample(rows: NDArray[np.float32], *sequences: SequenceState) -> list[int]:
    results = sample_each(rows, *sequences)
    sampled = [result for result in results if isinstance(result, Sampled)]
    assert len(sampled) == len(results), results
    return [result.token_id for result in sampled]


def histogram(row: NDArray[np.float32], draws: int = 20_000, **sampling: Any) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    params = SamplingParams(**sampling)
    counts = Counter(draw(row, params, rng) for _ in range(draws))
    return np.array([counts[i] / draws for i in range(len(row))])


def test_greedy_takes_the_best() -> None:
    assert sample(logits(t9=2, t8=1), sequence()) == [9]


def test_temperature_is_the_softmax() -> None:
    row = np.random.default_rng(1).normal(0, 2, 20).astype(np.float32)
    expected = np.exp(row / 0.7) / np.exp(row / 0.7).sum()
    assert np.abs(histogram(row, temperature=0.7) - expected).max() < 0.015


def test_distribution_over_many_buckets() -> None:
    """The two-level draw must be right at bucket boundaries."""
    row: NDArray[np.float32] = np.full(1000, -20, np.float32)
    row[[0, 255, 256, 511, 999]] = 0
    assert np.abs(histogram(row)[[0, 255, 256, 511, 999]] - 0.2).max() < 0.015


def test_top_k_keeps_k() -> None:
    row = np.arange(100).astype(np.float32) / np.float32(50)
    assert np.flatnonzero(histogram(row, top_k=3)).tolist() == [97, 98, 99]


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    assert np.flatnonzero(histogram(row, top_p=0.79)).tolist() == [0, 1]
    assert np.flatnonzero(histogram(row, top_p=0.81)).tolist() == [0, 1, 2]
    assert np.flatnonzero(histogram(row, top_p=0.0)).tolist() == [0]
    assert np.abs(histogram(row, top_p=0.81) - np.array([50, 30, 15, 0]) / 95).max() < 0.015


def test_top_p_against_sorting_everything() -> None:
    rng = np.random.default_rng(3)
    for p in (0.1, 0.5, 0.9, 0.99):
        row = rng.normal(0, 3, 2000).astype(np.float32)
        mass = np.exp(row.astype(np.float64))
        order = np.argsort(-mass)
        nucleus = set(order[: 1 + int(np.searchsorted(np.cumsum(mass[order]) / mass.sum(), p))].tolist())
        drawn = {draw(row, SamplingParams(top_p=p), rng) for _ in range(3000)}
        assert drawn <= nucleus


def test_top_p_of_equals_keeps_no_more_than_it_must() -> None:
    assert len(np.flatnonzero(histogram(np.zeros(100, np.float32), top_p=0.5))) == 50
    row = np.array([1, 0, 0, 0, 0, 1], np.float32)
    assert np.flatnonzero(histogram(row, top_p=0.65)).tolist() == [0, 1, 5]


def test_min_p_is_relative_to_the_best() -> None:
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    assert np.flatnonzero(histogram(row, min_p=0.25)).tolist() == [0, 1, 2]


def test_filters_join() -> None:
    row = np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    assert np.flatnonzero(histogram(row, top_k=3, top_p=0.7)).tolist() == [0, 1]


def test_repetition_penalty_counts_prompt_and_output() -> None:
    row = logits(t1=2.0, t3=1.9, t5=1.5)
    assert sample(row.copy(), sequence(output=(3,), repetition_penalty=2.0)) == [5]
    below_zero = np.full((1, VOCAB_SIZE), -1, np.float32)
    below_zero[0, 1] = -0.9
    assert sample(below_zero, sequence(prompt=(1,), repetition_penalty=2.0)) == [0]


def test_presence_and_frequency_count_output_alone() -> None:
    row = logits(t1=2.0, t3=2.5, t4=2.2)
    assert sample(row.copy(), sequence(output=(3, 3), presence_penalty=0.4)) == [4]
    assert sample(row.copy(), sequence(output=(3,), frequency_penalty=0.2)) == [3]
    assert sample(row.copy(), sequence(output=(3, 3), frequency_penalty=0.2)) == [4]
    assert sample(logits(t1=2.0, t3=1.9), sequence(prompt=(1,), presence_penalty=2.0)) == [1]


def test_penalties_follow_the_output() -> None:
    one = sequence(frequency_penalty=0.5)
    drawn = []
    for _ in range(4):
        drawn += sample(logits(t3=1.0, t4=0.8), one)
        one.token_ids.append(drawn[-1])
    assert drawn == [3, 4, 3, 4]


def test_logit_bias() -> None:
    assert sample(logits(t5=2), sequence(logit_bias={9: 3.0})) == [9]
    assert sample(logits(t5=2, t6=1), sequence(logit_bias={5: -100})) == [6]


def test_bad_words_of_one_and_more_tokens() -> None:
    row = logits(t5=2, t6=1)
    assert sample(row.copy(), sequence(bad_words=((5,),))) == [6]
    assert sample(row.copy(), sequence(output=(4,), bad_words=((4, 5),))) == [6]
    assert sample(row.copy(), sequence(output=(3,), bad_words=((4, 5),))) == [5]


def test_min_tokens_forbids_every_stop() -> None:
    row = logits(t7=3, t8=2, t9=1)
    assert sample(row.copy(), sequence(min_tokens=1, stop_token_ids=(8,))) == [9]
    assert sample(row.copy(), sequence(output=(9,), min_tokens=1)) == [STOP]


def test_seed_reproduces_whatever_else_is_in_the_batch() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(0, 1, (50, VOCAB_SIZE)).astype(np.float32)

    def run(neighbours: int) -> list[int]:
        mine = sequence(temperature=1.0, seed=11)
        others = [sequence(temperature=0.8, top_p=0.9, seed=i) for i in range(neighbours)]
        drawn = []
        for row in rows:
            batch = np.stack([row, *rng.normal(0, 1, (neighbours, VOCAB_SIZE)).astype(np.float32)])
            drawn.append(sample(batch, mine, *others)[0])
        return drawn

    assert run(0) == run(5)


def test_seeds_and_indices_differ() -> None:
    request = RequestState.create(GenerationRequest(0, (1,), SamplingParams(seed=1, n=2)))
    other = RequestState.create(GenerationRequest(0, (1,), SamplingParams(seed=2)))
    negative = RequestState.create(GenerationRequest(0, (1,), SamplingParams(seed=-1)))
    firsts = [s.rng.random() for s in [*request.sequences, *other.sequences, *negative.sequences]]
    assert len(set(firsts)) == 4


def test_logprobs_are_the_models_own() -> None:
    row = np.random.default_rng(0).normal(0, 3, VOCAB_SIZE).astype(np.float32)
    expected = row - np.log(np.exp(row.astype(np.float64)).sum())
    got = token_logprob(row, 5, 3)
    assert got.logprob == pytest.approx(expected[5], abs=1e-5)
    best = np.argsort(-row)[:3]
    assert [t for t, _ in got.top] == best.tolist()
    assert [p for _, p in got.top] == pytest.approx(expected[best].tolist(), abs=1e-5)


def test_logprobs_do_not_see_penalties_or_bias() -> None:
    row = logits(t5=2)
    result = sample_each(row, sequence(logprobs=1, logit_bias={5: -100}, temperature=0.0))[0]
    assert isinstance(result, Sampled)
    assert result.logprob is not None
    assert result.token_id != 5
    assert result.logprob.top[0][0] == 5
    assert result.logprob.logprob == pytest.approx(-math.log(math.e**2 + VOCAB_SIZE - 1), abs=1e-5)


class AllowOnly:
    """A guide that allows a fixed set."""

    def __init__(self, *allowed: int) -> None:
        self.allowed = allowed
        self.advanced: list[int] = []

    def fill_bitmask(self, row: NDArray[np.int32]) -> None:
        bits = np.zeros(len(row) * 32, np.uint8)
        bits[list(self.allowed)] = 1
        row[:] = np.packbits(bits, bitorder="little").view(np.int32)

    def advance(self, token_ids: Sequence[int]) -> bool:
        self.advanced += token_ids
        return set(token_ids) <= set(self.allowed)

    def is_terminated(self) -> bool:
        return False

    def copy(self) -> AllowOnly:
        return self


def test_guide_masks_and_advances() -> None:
    guide = AllowOnly(40, 299)
    assert sample(logits(t5=9, t299=1), sequence(guide=guide)) == [299]
    assert guide.advanced == [299]
    assert sample(logits(t5=9), sequence(guide=guide, temperature=1.0))[0] in guide.allowed


def test_guide_outranks_min_tokens_and_bias() -> None:
    assert sample(logits(t5=9), sequence(guide=AllowOnly(STOP), min_tokens=5)) == [STOP]


def test_a_guide_without_a_way_ends_its_own_request_alone() -> None:
    rows = np.concatenate([logits(t5=2), logits(t6=2)])
    stuck, fine = sample_each(rows, sequence(guide=AllowOnly()), sequence())
    assert isinstance(stuck, Exception)
    assert "guide allows no token" in str(stuck)
    assert fine == Sampled(6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "sampling",
    [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 1.0, "top_k": 5}, {"logprobs": 2}],
)
def test_damaged_logits_end_their_own_request_alone(value: float, sampling: dict[str, Any]) -> None:
    """Greedy sampling took NaN for the best token and went on; other sampling raised IndexError; a guide took any
    allowed token."""
    for guide in (None, AllowOnly(5, 6)):
        rows = np.concatenate([np.full((1, VOCAB_SIZE), value, np.float32), logits(t6=2)])
        damaged, fine = sample_each(rows, sequence(guide=guide, **sampling), sequence())
        assert isinstance(damaged, RuntimeError)
        assert "no logit is finite" in str(damaged)
        assert fine == Sampled(6)


@pytest.mark.parametrize("filters", [{"top_k": 50}, {"top_k": 1}, {"top_p": 0.0}, {"top_p": 0.9, "min_p": 1.0}])
@pytest.mark.parametrize("temperature", [1e-30, 1e-5, 1.0, 100.0])
def test_extreme_sampling_stays_within_the_guide(temperature: float, filters: dict[str, Any]) -> None:
    row = np.random.default_rng(0).normal(0, 40, (1, VOCAB_SIZE)).astype(np.float32)
    for _ in range(20):
        (drawn,) = sample(row.copy(), sequence(guide=AllowOnly(3, 299), temperature=temperature, **filters))
        assert drawn in (3, 299)
        if temperature < 1 or filters.get("top_k") == 1 or "top_p" in filters:
            assert drawn == (3 if row[0, 3] > row[0, 299] else 299)


@pytest.mark.parametrize(
    "sampling",
    [
        {"repetition_penalty": 1.3},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -0.25},
        {"repetition_penalty": 0.8, "presence_penalty": -1.5, "frequency_penalty": 0.7},
    ],
)
def test_penalties_as_counts_of_a_whole_vocabulary(sampling: dict[str, float]) -> None:
    """Lists of what was seen do what arrays of all tokens did, bit for bit, as the output grows."""
    rng = np.random.default_rng(3)
    prompt = [*rng.integers(0, VOCAB_SIZE, 40).tolist()]
    output: list[int] = []
    params, state = SamplingParams(**sampling), PenaltyState(prompt, len(prompt))  # type: ignore[arg-type]
    for _ in range(150):
        row = rng.normal(0, 3, VOCAB_SIZE).astype(np.float32)
        seen = np.isin(np.arange(VOCAB_SIZE), prompt + output)
        counts = np.bincount(np.array(output, np.int64), minlength=VOCAB_SIZE).astype(np.float32)
        expected = row.copy()
        factor = np.float32(params.repetition_penalty)
        expected[seen] = np.where(expected[seen] > 0, expected[seen] / factor, expected[seen] * factor)
        expected -= np.float32(params.presence_penalty) * (counts > 0)
        expected -= np.float32(params.frequency_penalty) * counts
        state.apply(row, params)
        assert (row == expected).all()
        output.append(int(rng.integers(0, VOCAB_SIZE)))
        state.add(output[-1])
    resumed = PenaltyState([*prompt, *output], len(prompt))
    first, second = row.copy(), row.copy()
    state.apply(first, params)
    resumed.apply(second, params)
    assert (first == second).all()
