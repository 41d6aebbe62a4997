"""The real TensorRT-LLM keeps the Executor's promises."""

from __future__ import annotations

import pytest

from briton.engine.executor import Executor
from briton.trtllm.engine_check import open_engine
from briton.trtllm.library import load_library
from briton.trtllm.loader import start_executor
from tests.conformance import ExecutorConformance, ExecutorLimits
from tests.gpu.conftest import MakeConfig, MakeEngine
from tests.gpu.lookahead import speculator
from tests.trtllm.engines import with_kv_cache


class TestTrtllmOnGpu(ExecutorConformance):
    cancels_sequences = False
    samples_with_lookahead = False

    @pytest.fixture(autouse=True)
    def use_engines(self, make_config: MakeConfig, make_engine: MakeEngine) -> None:
        self.make_config, self.make_engine = make_config, make_engine

    def make_executor(self, limits: ExecutorLimits) -> Executor:
        """On the one engine with this lookahead: other limits than it was built for are lower ones."""
        lookahead = {} if limits.lookahead is None else speculator(limits.lookahead)
        _, directory = self.make_engine(lookahead)
        lower = {
            "trt_llm.build.max_batch_size": limits.max_batch_size,
            "trt_llm.build.max_seq_len": limits.max_seq_len,
            "briton.max_queue_size": limits.max_queue_size,
        }
        built = open_engine(self.make_config({**lookahead, **lower}), directory, 0)
        return start_executor(with_kv_cache(built, limits.kv_cache_tokens), load_library())
