"""Everything that works on one rank works on two: the whole specification of an executor, over a real MPI."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from briton.config.environment import Environment
from briton_engine_builder import build_engine
from tests.conftest import TinyLlama
from tests.engine_builder.engines import config_for
from tests.local.ranks.mpi import run_ranks


@pytest.mark.slow
def test_two_ranks(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    config = config_for(tiny_llama(tmp_path), tmp_path, precision="f32", tensor_parallel_count=2)
    directory = build_engine(config, Environment(cache_dir=tmp_path / "cache"), progress=False)
    printed = run_ranks(2, "tests.local.ranks.conformance_ranks", str(directory), timeout_s=280)
    passed = re.search(r"(\d+) passed", printed)
    assert passed, printed
    assert int(passed[1]) > 30
