"""The TensorRT-LLM executor keeps the Executor's promises, on the stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest

from briton.engine.executor import Executor
from tests.conformance import ExecutorConformance, ExecutorLimits
from tests.trtllm.engines import start


class TestTrtllm(ExecutorConformance):
    cancels_sequences = False
    samples_with_lookahead = False

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.directory = tmp_path

    def make_executor(self, limits: ExecutorLimits) -> Executor:
        return start(
            self.directory,
            max_batch_size=limits.max_batch_size,
            max_queue_size=limits.max_queue_size,
            max_seq_len=limits.max_seq_len,
            kv_cache_tokens=limits.kv_cache_tokens,
            lookahead=limits.lookahead,
            build={"max_seq_len": limits.max_seq_len},
        )
