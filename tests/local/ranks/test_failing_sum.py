"""What a sum over ranks raises comes out of the model's call, whatever graph computes the step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from briton.config.environment import Environment
from briton.local.model_runner import ModelRunner
from briton.local.probe import one_sequence
from briton.local.ranks.collectives import SingleRank
from briton.local.settings import LocalSettings
from briton.model.engine_dir import load_manifest
from briton_engine_builder import build_engine
from tests.conftest import TinyLlama
from tests.engine_builder.engines import config_for


class FailingSum(SingleRank):
    """One rank that is asked for sums all the same, the third of which fails."""

    sums_left: int | None = None

    def sum_over_ranks(self, part: NDArray[np.float32], total: NDArray[np.float32]) -> None:
        if self.sums_left is not None:
            self.sums_left -= 1
            if self.sums_left == 0:
                raise RuntimeError("layer 1 is broken")
        total[...] = part


@pytest.mark.parametrize("threads", [1, 2])
def test_no_graph_swallows_it(tiny_llama: TinyLlama, tmp_path: Path, threads: int) -> None:
    """With one thread the plugin's blocking call returned as if nothing had been: half a step passed for a whole."""
    config = config_for(tiny_llama(tmp_path), tmp_path, precision="f32")
    directory = build_engine(config, Environment(cache_dir=tmp_path / "cache"), progress=False)
    settings = LocalSettings(
        max_batch_size=4, max_num_tokens=64, max_queue_size=4, kv_cache_tokens=512, threads=threads, precision="f32"
    )
    collectives = FailingSum()
    runner = ModelRunner(directory, load_manifest(directory), settings, fixed_sizes=(1, 4), collectives=collectives)
    for num_tokens in (1, 4, 20):
        whole = runner.forward(one_sequence(num_tokens)).copy()
        collectives.sums_left = 3
        with pytest.raises(RuntimeError, match="layer 1 is broken"):
            runner.forward(one_sequence(num_tokens))
        collectives.sums_left = None
        np.testing.assert_array_equal(runner.forward(one_sequence(num_tokens)), whole)
