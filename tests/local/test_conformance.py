"""The local executor keeps the promises of an executor: over a model without mathematics, and over a compiled one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from briton.config.environment import load_environment
from briton.config.lookahead import LookaheadConfig
from briton.engine.executor import Executor
from briton.local.executor import LocalExecutor
from briton.local.loader import load_local_executor
from briton.local.lookahead.costs import CostCurve
from briton.local.settings import LocalSettings, SchedulerPolicy
from briton_engine_builder import build_engine
from tests.conformance import ExecutorConformance, ExecutorLimits
from tests.conftest import TinyLlama
from tests.engine_builder.engines import config_for
from tests.local.paged_model import PagedModel, model_info


@pytest.fixture(scope="module")
def tiny_engine_dir(tiny_llama: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama of random weights, in float32."""
    folder = tmp_path_factory.mktemp("conformance")
    config = config_for(tiny_llama(folder), folder, precision="f32")
    return build_engine(config, load_environment({"BRITON_CACHE_DIR": str(folder / "cache")}), progress=False)


class PagedConformance(ExecutorConformance):
    """The loop, scheduler, blocks and sampler alone."""

    policy: SchedulerPolicy
    block_size = 16

    def make_executor(self, limits: ExecutorLimits) -> Executor:
        info = limits.of(model_info(block_size=self.block_size, max_num_tokens=100))
        model = PagedModel(info.kv_cache_tokens // self.block_size, self.block_size)
        return LocalExecutor(info, model.forward, policy=self.policy, costs=CostCurve.flat())


class TestGuaranteedNoEvict(PagedConformance):
    policy: Literal["guaranteed_no_evict"] = "guaranteed_no_evict"


class TestMaxUtilization(PagedConformance):
    policy: Literal["max_utilization"] = "max_utilization"


class TestDynamicLookahead(TestGuaranteedNoEvict):
    limits = ExecutorLimits(lookahead=LookaheadConfig(8, 1, 1), enable_b10_lookahead=True)


class TestLookaheadWindow(TestGuaranteedNoEvict):
    limits = ExecutorLimits(lookahead=LookaheadConfig(5, 4, 3))


class TestDynamicLookaheadBesideAWindow(TestMaxUtilization):
    limits = ExecutorLimits(lookahead=LookaheadConfig(3, 3, 2), enable_b10_lookahead=True)


def compiled_settings(limits: ExecutorLimits) -> LocalSettings:
    """What a compiled model is loaded with to have these limits."""
    return LocalSettings(
        max_batch_size=limits.max_batch_size,
        max_num_tokens=100,
        max_queue_size=limits.max_queue_size,
        max_seq_len=limits.max_seq_len,
        kv_cache_tokens=limits.kv_cache_tokens,
        precision="f32",
        lookahead=limits.lookahead,
        enable_b10_lookahead=limits.enable_b10_lookahead,
        max_draft_tokens=limits.max_draft_tokens,
    )


class TestCompiledModel(ExecutorConformance):
    """The same with a tiny Llama of random weights, in float32."""

    @pytest.fixture(autouse=True)
    def use_engine_dir(self, tiny_engine_dir: Path) -> None:
        self.engine_dir = tiny_engine_dir

    def make_executor(self, limits: ExecutorLimits) -> Executor:
        return load_local_executor(self.engine_dir, compiled_settings(limits), "tiny")
