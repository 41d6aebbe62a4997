"""The executor's specification over several ranks; run inside rank 0 by `conformance_ranks`, not collected here."""

from __future__ import annotations

from briton.engine.executor import Executor
from briton.local.loader import load_local_executor
from tests.conformance import ExecutorConformance, ExecutorLimits
from tests.local.ranks import conformance_ranks
from tests.local.test_conformance import compiled_settings


class TestRanks(ExecutorConformance):
    """A tiny Llama of random weights, in float32, over all ranks of this world."""

    def make_executor(self, limits: ExecutorLimits) -> Executor:
        settings = compiled_settings(limits)
        engine_dir, ranks = conformance_ranks.invite(settings)
        return load_local_executor(engine_dir, settings, "tiny", ranks)
