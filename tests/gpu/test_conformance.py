"""The real TensorRT-LLM keeps the Executor's promises."""

from __future__ import annotations

from dataclasses import replace

import pytest

from briton.executor import Executor
from briton.trtllm.library import load_library
from briton.trtllm.loader import start_executor, trtllm_settings
from tests.conformance import ExecutorConformance, ExecutorLimits
from tests.gpu.conftest import MakeEngine
from tests.gpu.lookahead import speculator


class TestTrtllmOnGpu(ExecutorConformance):
    samples_with_lookahead = False

    @pytest.fixture(autouse=True)
    def use_engines(self, make_engine: MakeEngine) -> None:
        self.make_engine = make_engine

    def make_executor(self, limits: ExecutorLimits) -> Executor:
        config, directory = self.make_engine(None if limits.lookahead is None else speculator(limits.lookahead))
        settings = replace(
            trtllm_settings(config),
            max_batch_size=limits.max_batch_size,
            max_queue_size=limits.max_queue_size,
            max_seq_len=limits.max_seq_len,
            kv_cache_tokens=limits.kv_cache_tokens,
        )
        return start_executor(directory, settings, config.served_model_name, load_library())
