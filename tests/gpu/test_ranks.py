"""Two ranks of the real library, built and run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from briton.trtllm.machine import this_machine
from tests.gpu.conftest import MakeEngine

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(len(this_machine().gpus) < 2, reason="NOT RUN: two ranks need two GPUs")
def test_two_ranks_answer_and_end(make_engine: MakeEngine) -> None:
    config, directory = make_engine({"trt_llm.build.tensor_parallel_count": 2})
    program = [sys.executable, "-m", "tests.gpu.rank_program", str(config.path), str(directory)]
    mpirun = ["mpirun", "--allow-run-as-root", "--bind-to", "none", "-n", "2"]
    run = subprocess.run([*mpirun, *program], cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert run.returncode == 0, run.stderr[-4000:]
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("ANSWERS ")]
    answers = json.loads(line.removeprefix("ANSWERS "))
    assert answers["ranks"] == 2
    assert [len(tokens) for tokens in answers["free"]] == [8] * 8
    assert answers["guided"][:3] == [100, 101, 102]
