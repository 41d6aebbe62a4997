"""The best few are what a full sort gives, whatever the row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from briton.engine.types import SamplingParams
from briton.local.candidates import nucleus, top_ids
from briton.local.sampler import draw

Row = NDArray[np.float32]


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """From peaked to flat, with equals and with -inf; from a few tokens to more than are sorted at once."""
    size = draw(st.sampled_from([1, 2, 50, 300, 4095, 4096, 5000, 33_000, 70_001]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    row = rng.normal(0, draw(st.sampled_from([0, 1e-6, 0.05, 0.5, 1, 3, 10, 40])), size).astype(np.float32)
    row += rng.normal(0, 1, size).astype(np.float32) ** draw(st.sampled_from([1, 3, 7]))
    if step := draw(st.sampled_from([0, 0.25, 2])):  # many equals
        row = np.round(row / np.float32(step)) * np.float32(step)
    if share := draw(st.sampled_from([0, 0.5, 0.999])):  # forbidden
        row[rng.random(size) < share] = -np.inf
        row[rng.integers(size)] = 0
    return row.astype(np.float32)


def sorted_top(row: Row, k: int) -> list[int]:
    return sorted(np.argsort(-row, kind="stable")[:k].tolist())


def sorted_nucleus(mass: Row, top_p: float) -> list[int]:
    """By a full sort; the ones that are as likely as the last come last."""
    order = np.argsort(-mass, kind="stable")
    sums = np.cumsum(mass[order], dtype=np.float64)
    count = min(int(np.searchsorted(sums, top_p * float(mass.sum()))), len(mass) - 1) + 1
    last = mass[order[count - 1]]
    kept = order[:count]
    return [*sorted(kept[mass[kept] > last].tolist()), *sorted(kept[mass[kept] == last].tolist())]


def mass_of(row: Row) -> Row:
    mass: Row = np.exp(row - row.max())
    return mass


@given(row=rows(), k=st.sampled_from([1, 2, 20, 50, 400, 3000, 20_000, 10**6]))
@settings(max_examples=200, deadline=None)
def test_top_ids_are_those_of_a_full_sort(row: Row, k: int) -> None:
    assert top_ids(row, k).tolist() == sorted_top(row, k)


@given(row=rows(), top_p=st.sampled_from([0.0, 1e-6, 0.1, 0.5, 0.9, 0.95, 0.999, 0.9999999]))
@settings(max_examples=300, deadline=None)
def test_the_nucleus_is_that_of_a_full_sort(row: Row, top_p: float) -> None:
    mass = mass_of(row)
    assert nucleus(mass, top_p).tolist() == sorted_nucleus(mass, top_p)


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 4.0, 12.0])
@pytest.mark.parametrize("size", [49_152, 262_144])
def test_the_nucleus_of_a_large_vocabulary(spread: float, size: int) -> None:
    for seed in range(4):
        mass = mass_of(np.random.default_rng(seed).normal(0, spread, size).astype(np.float32))
        for top_p in (0.3, 0.9, 0.99):
            assert nucleus(mass, top_p).tolist() == sorted_nucleus(mass, top_p)


def full_draw(row: Row, sampling: SamplingParams, rng: np.random.Generator) -> int:
    """By sorting everything, one step after the other."""
    uniform = rng.random()
    scaled = row * np.float32(1 / sampling.temperature)
    ids = np.arange(len(row))
    if 0 < sampling.top_k < len(row):
        ids = np.array(sorted_top(row, sampling.top_k))
    mass = mass_of(scaled[ids])
    if sampling.top_p < 1:
        kept = np.array(sorted_nucleus(mass, sampling.top_p))
        ids, mass = ids[kept], mass[kept]
    kept = np.flatnonzero(mass >= np.float32(sampling.min_p))
    ids, mass = ids[kept], mass[kept]
    sums = np.cumsum(mass, dtype=np.float64)
    return int(ids[min(int(np.searchsorted(sums, uniform * sums[-1], side="right")), len(ids) - 1)])


@given(
    row=rows(),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.5]),
    top_k=st.sampled_from([0, 1, 40, 2000]),
    top_p=st.sampled_from([0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.5]),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_a_draw_is_that_of_a_full_sort(
    row: Row, temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    sampling = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    before = row.copy()
    drawn = draw(row, sampling, np.random.default_rng(seed))
    assert drawn == full_draw(row, sampling, np.random.default_rng(seed))
    assert (row == before).all()
