"""Lookahead's sizes as a config says them."""

from __future__ import annotations

from typing import Any

from briton.config.lookahead import LookaheadConfig
from tests.trtllm import engines


def speculator(sizes: LookaheadConfig) -> dict[str, Any]:
    """Changes of a config."""
    return {
        "trt_llm.build.gather_all_token_logits": False,
        "trt_llm.build.speculator": engines.speculator(sizes),
    }
