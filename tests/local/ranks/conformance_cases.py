"""The executor's specification over several ranks; run inside rank 0 by `conformance_ranks`, not collected here."""

from __future__ import annotations

from typing import Any

from briton.executor import Executor
from briton.local.loader import load_local_executor
from briton.local.settings import LocalSettings
from tests.conformance import ExecutorConformance, ExecutorLimits
from tests.local.ranks import conformance_ranks


class TestRanks(ExecutorConformance):
    """A tiny Llama of random weights, in float32, over all ranks of this world."""

    def make_executor(self, limits: ExecutorLimits) -> Executor:
        settings = LocalSettings(
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
        engine_dir, ranks = conformance_ranks.invite(settings)
        arguments: tuple[Any, ...] = (engine_dir, settings, "tiny", ranks)
        return load_local_executor(*arguments)
