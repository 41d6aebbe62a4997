"""The parts of a model compute together what the whole computes alone. Ranks are threads of this process: no MPI."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray

from briton.config.environment import Environment
from briton.local.model_runner import ModelRunner
from briton.local.plan import StepInputs
from briton.local.settings import BLOCK_SIZE, LocalSettings
from briton.model.engine_dir import load_manifest
from briton_engine_builder import build_engine
from tests.conftest import TinyLlama
from tests.engine_builder.engines import config_for

SETTINGS = LocalSettings(
    max_batch_size=2, max_num_tokens=128, max_queue_size=1, threads=1, precision="f32", kv_cache_tokens=512
)
Logits = NDArray[np.float32]
Build = Callable[..., Path]  # (ranks, **shape) -> engine directory
T = TypeVar("T")


class Team:
    """What one rank's thread says to the others', all at once."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=60)
        self._said: list[Any] = [None] * size

    def exchange(self, rank: int, value: T) -> list[T]:
        """Everybody's values, by rank."""
        self._said[rank] = value
        self._barrier.wait()
        values = list(self._said)
        self._barrier.wait()  # nobody says the next before all have heard this
        return values


class Peer:
    """One rank's collectives."""

    def __init__(self, team: Team, rank: int, ranks_on_host: int) -> None:
        self.rank = rank
        self.ranks_on_host = ranks_on_host
        self._team = team

    def sum_over_ranks(self, part: Logits, total: Logits) -> None:
        total[:] = sum(self._team.exchange(self.rank, part.copy()))

    def smallest(self, value: int) -> int:
        return min(self._team.exchange(self.rank, value))

    def sum_on_host(self, value: int) -> int:
        return sum(self._team.exchange(self.rank, value))


class Sharded:
    """The runners of all ranks of an engine, each with its thread."""

    def __init__(self, directory: Path, settings: Sequence[LocalSettings]) -> None:
        size = len(settings)
        team, manifest = Team(size), load_manifest(directory)
        self._threads = ThreadPoolExecutor(size)
        self.runners = list(
            self._threads.map(
                lambda rank: ModelRunner(directory, manifest, settings[rank], collectives=Peer(team, rank, size)),
                range(size),
            )
        )

    def forward(self, inputs: StepInputs) -> Logits:
        """The logits of all ranks, side by side."""
        parts = list(self._threads.map(lambda runner: runner.forward(inputs).copy(), self.runners))
        return np.concatenate(parts, axis=1)


@pytest.fixture
def build(tiny_llama: TinyLlama, tmp_path: Path) -> Build:
    """Builds an engine of random float32 weights for some ranks."""

    def make(ranks: int, **shape: Any) -> Path:
        config = config_for(tiny_llama(tmp_path, **shape), tmp_path, precision="f32", tensor_parallel_count=ranks)
        return build_engine(config, Environment(cache_dir=tmp_path / "cache"), progress=False)

    return make


def step(lengths: Sequence[tuple[int, int]], rows: Sequence[int], seed: int = 0) -> StepInputs:
    """Sequences of (computed, new) tokens, with 64 tokens' room each; logits of these rows."""
    past, new = np.array(lengths, np.int32).T
    blocks = 64 // BLOCK_SIZE
    tokens = np.random.default_rng(seed).integers(0, 500, int(new.sum()))
    nothing = np.zeros(len(new) + 1, np.int32)
    return StepInputs(
        token_ids=tokens.astype(np.int64),
        position_ids=np.concatenate([np.arange(p, p + n) for p, n in lengths]).astype(np.int64),
        past_lens=past,
        subsequence_begins=np.concatenate([[0], np.cumsum(new)]).astype(np.int32),
        block_indices=np.arange(blocks * len(new), dtype=np.int32)[::-1].copy(),
        block_indices_begins=np.arange(len(new) + 1, dtype=np.int32) * blocks,
        max_context_len=int((past + new).max()),
        sampled_rows=np.array(rows, np.int64),
        qq_bias=np.zeros(0, np.uint8),
        qq_bias_begins=nothing,
    )


STEPS = (
    step([(0, 40), (0, 9)], [39, 48]),  # prompts
    step([(40, 1), (9, 12)], [0, 12], seed=1),  # a token, and the next part of a prompt
    step([(41, 1), (21, 1)], [0, 1], seed=2),
)


@pytest.mark.parametrize(
    ("ranks", "shape"),
    [
        (2, {}),
        (2, {"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 500}),
        (2, {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": True}),
        (3, {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}),
        (3, {"num_attention_heads": 6, "num_key_value_heads": 3, "attention_bias": True, "mlp_bias": True}),
    ],
    ids=["divisible", "uneven", "replicated-tied", "replicated-uneven", "biases"],
)
def test_the_same_logits(build: Build, ranks: int, shape: dict[str, Any]) -> None:
    whole = build(1, **shape)
    alone = ModelRunner(whole, load_manifest(whole), SETTINGS)
    together = Sharded(build(ranks, **shape), [SETTINGS] * ranks)
    for inputs in STEPS:
        expected = alone.forward(inputs)
        logits = together.forward(inputs)
        assert logits.shape == expected.shape
        assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


def test_each_rank_has_its_share_of_the_cache(build: Build) -> None:
    whole = build(1)
    alone = ModelRunner(whole, load_manifest(whole), SETTINGS)
    ranks = Sharded(build(2), [SETTINGS] * 2).runners
    assert [runner.block_bytes for runner in ranks] == [alone.block_bytes // 2] * 2
    assert [runner.num_blocks for runner in ranks] == [alone.num_blocks] * 2


def test_what_depends_on_the_machine_is_agreed_upon(build: Build) -> None:
    """Blocks of the cache, and the element type: rank 0 knows only its own machine, and plans for all."""
    roomy = replace(SETTINGS, precision="bf16", kv_cache_tokens=1024, kv_cache_dtype="f32")
    runners = Sharded(build(2), [roomy, replace(SETTINGS, kv_cache_dtype="f32")]).runners
    assert [runner.num_blocks for runner in runners] == [512 // BLOCK_SIZE] * 2
    assert [runner.precision for runner in runners] == ["f32", "f32"]
