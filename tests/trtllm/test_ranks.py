"""Several ranks: rank 0 serves, the others follow and end with it."""

from __future__ import annotations

import functools
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from briton.config.config import Config
from briton.errors import ConfigError
from briton.trtllm.loader import create_trtllm_executor, follow_trtllm_executor
from briton.trtllm.logits import no_op
from tests.request_runner import RequestRunner
from tests.scripted_guide import ScriptedGuide
from tests.trtllm.engines import MANIFEST, STOP_IDS, config_of, write_engine
from tests.trtllm.stand_in.executor import World
from tests.trtllm.stand_in.library import stand_in_library

RANKS = 4


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_engine(tmp_path, replace(MANIFEST, tensor_parallel_size=RANKS))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return config_of(tmp_path, max_batch_size=4, tensor_parallel_count=RANKS)


def test_followers_end_with_rank_0(config: Config, directory: Path) -> None:
    world = World(RANKS)
    loaded: list[int] = []
    followers = [
        threading.Thread(
            target=follow_trtllm_executor,
            args=(config, directory, functools.partial(loaded.append, rank), stand_in_library(rank, world)),
        )
        for rank in range(1, RANKS)
    ]
    for follower in followers:
        follower.start()
    executor = create_trtllm_executor(config, directory, library=stand_in_library(0, world))
    assert executor.info.tensor_parallel_size == RANKS
    runner = RequestRunner(executor)
    assert len(runner.run((1, 2, 3), max_tokens=5).tokens()) == 5
    guide = ScriptedGuide([{10}, {20}], STOP_IDS)
    assert runner.run((1, 2, 3), guide=guide).tokens()[:2] == (10, 20)
    assert all(follower.is_alive() for follower in followers)
    assert sorted(loaded) == [1, 2, 3]
    executor.shutdown()
    for follower in followers:
        follower.join(5)
        assert not follower.is_alive()


def test_a_follower_has_a_processor_that_does_nothing(
    config: Config, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guides have a state, which rank 0 keeps."""
    world = World(RANKS)
    world.ended.set()
    library = stand_in_library(2, world)
    built: list[Any] = []
    executor_class = library.trtllm.Executor
    initialise = executor_class.__init__

    def watched(self: Any, *args: Any) -> None:
        initialise(self, *args)
        built.append(self)

    monkeypatch.setattr(executor_class, "__init__", watched)
    follow_trtllm_executor(config, directory, lambda: None, library)
    processors = built[0]._config.logits_post_processor_config
    assert (processors.processor_batched, processors.replicate) == (no_op, False)
    assert not built[0].can_enqueue_requests()
    no_op([1], [], [[[1]]], 0, [None])


def test_the_wrong_rank_is_refused(config: Config, directory: Path) -> None:
    world = World(RANKS)
    with pytest.raises(ConfigError, match="rank 2 cannot serve: only rank 0 does"):
        create_trtllm_executor(config, directory, library=stand_in_library(2, world))
    with pytest.raises(ConfigError, match="rank 0 cannot follow: it serves"):
        follow_trtllm_executor(config, directory, lambda: None, stand_in_library(0, world))
